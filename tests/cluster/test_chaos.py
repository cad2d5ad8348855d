"""Every job reaches its expected end despite random kills, faults of the API server and actions of users.

`LORA_TEST_CHAOS_ROUNDS` says how many rounds; `LORA_TEST_CHAOS_SEED` the first seed, to repeat a round;
`LORA_TEST_CHAOS_AT_ONCE` how many run at the same time, each in a namespace of its own.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from kubernetes import client

from tests.support.cluster.chaos import RoundResult, run_round
from tests.support.cluster.harness import OperatorProcess, until
from tests.support.cluster.proxy import Faults
from tests.support.cluster.wire import Wire

ROUNDS = int(os.environ.get("LORA_TEST_CHAOS_ROUNDS", "2"))
FIRST = int(os.environ.get("LORA_TEST_CHAOS_SEED", "1"))
AT_ONCE = int(os.environ.get("LORA_TEST_CHAOS_AT_ONCE", "1"))


async def run_in_namespace(
    api: client.ApiClient, operator_files: OperatorProcess, folder: Path, seed: int
) -> RoundResult:
    profiles = yaml.safe_load((operator_files.folder / "profiles.yaml").read_text())
    profiles["profiles"]["default"]["llm"] = {"models": ["test"]}
    folder.mkdir()
    (folder / "profiles.yaml").write_text(yaml.safe_dump(profiles))
    namespace = f"test-{uuid4().hex[:8]}"
    core = client.CoreV1Api(api)
    core.create_namespace({"metadata": {"name": namespace}})
    await asyncio.to_thread(until, lambda: core.list_namespaced_service_account(namespace).items)
    try:
        access = Wire.read(operator_files.kubeconfig)
        return await run_round(api, namespace, access, folder, str(seed), Faults())
    finally:
        core.delete_namespace(namespace)


@pytest.mark.parametrize("first", range(FIRST, FIRST + ROUNDS, AT_ONCE))
def test_chaos(api: client.ApiClient, operator_files: OperatorProcess, tmp_path: Path, first: int) -> None:
    seeds = range(first, min(first + AT_ONCE, FIRST + ROUNDS))

    async def run_all() -> list[RoundResult]:
        rounds = (run_in_namespace(api, operator_files, tmp_path / str(seed), seed) for seed in seeds)
        return await asyncio.gather(*rounds)

    errors = []
    for seed, result in zip(seeds, asyncio.run(run_all()), strict=True):
        print(f"round {seed}: {result}", dict(result.faults), *result.errors, sep="\n  ", flush=True)
        if result.errors:
            errors += [f"round {seed}:", *result.errors, f"see {tmp_path / str(seed) / 'operator.log'}"]
    if errors:
        pytest.fail("\n".join(errors), pytrace=False)
