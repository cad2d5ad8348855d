"""Random kills, random faults of the API, random people: every job must come to its right end all the same.

`LORA_TEST_CHAOS_ROUNDS` says how many rounds; `LORA_TEST_CHAOS_SEED` from which seed on, to play one again.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import yaml
from chaos import play
from proxy import Faults
from studio import OperatorProcess, Studio
from wire import Wire

ROUNDS = int(os.environ.get("LORA_TEST_CHAOS_ROUNDS", "2"))
FIRST = int(os.environ.get("LORA_TEST_CHAOS_SEED", "1"))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + ROUNDS))
def test_chaos(studio: Studio, operator_files: OperatorProcess, tmp_path: Path, seed: int) -> None:
    profiles = yaml.safe_load((operator_files.folder / "profiles.yaml").read_text())
    profiles["profiles"]["default"]["llm"] = {"models": ["test"]}
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump(profiles))
    access = Wire.read(operator_files.kubeconfig)
    outcome = asyncio.run(play(studio.api, studio.namespace, access, tmp_path, str(seed), Faults()))
    print(f"round {seed}: {outcome}", dict(outcome.faults), *outcome.wrong, sep="\n  ", flush=True)
    if outcome.wrong:
        pytest.fail("\n".join([*outcome.wrong, f"see {tmp_path / 'operator.log'}"]), pytrace=False)
