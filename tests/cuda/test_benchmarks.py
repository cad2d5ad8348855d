"""The scripts for a GPU run whole on the simulated device, so that no minute of a real one is lost to a mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.train.model.tiny import write_tiny_sdxl
from tests.cuda.build import build, missing_tool

pytestmark = pytest.mark.skipif(missing_tool() is not None, reason=str(missing_tool()))
NEEDS_CUDA = {"profile": "a profile needs a build of PyTorch with CUDA"}
"""Cases that no simulation can run, and their errors."""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_tiny_sdxl(path)
    return path


def run(module: str, *arguments: str) -> str:
    build("simulated")
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).parents[2],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rows_of(output: str) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {row["case"]: row for row in rows}


def test_the_measurement_of_a_gpu_runs_all_of_its_cases(folder: Path) -> None:
    from benchmarks.bench_gpu import CASES

    output = run(
        "tests.cuda.run_module",
        # A budget that is not used up on a slow machine, so that no plan and no case is left out.
        *("benchmarks.bench_gpu", "--budget", "3000"),
        *("--model", str(folder), "--resolution", "32", "--steps", "1"),
    )
    rows = rows_of(output)
    errors = {name: row["error"] for name, row in rows.items() if "error" in row}
    assert set(errors) == set(NEEDS_CUDA), errors
    assert all(text in errors[name] for name, text in NEEDS_CUDA.items())
    assert {case.name for case in CASES} <= set(rows)
    assert rows["rank 16, CUDA graph"]["losses"][:3] == rows["rank 16"]["losses"][:3]
    assert rows["resume in fp16"]["difference"] == 0
    assert rows["out of memory"]["recognised"]
    assert output.splitlines()[-1].endswith(" seconds")


def test_graphed_and_eager_steps_are_compared(folder: Path) -> None:
    output = run(
        "tests.cuda.run_module",
        *("benchmarks.bench_graphs", "--quick", "--model", str(folder), "--resolution", "32", "--steps", "6"),
    )
    figures = dict(item.split("=") for item in output.splitlines()[-1].removeprefix("RESULT ").split())
    assert float(figures["loss_difference"]) == float(figures["eager_difference"]) == 0
    assert figures["fallback"] == "1"
    graphed = rows_of(output)["checkpointing"]["graphed"]
    assert (graphed["captures"], graphed["replays"]) == (1, 4)


def test_a_step_waits_for_the_device_once(folder: Path) -> None:
    """Also with the Prodigies, whose sums are read together with the loss. No optimizer waits for each parameter."""
    counts = json.loads(run("tests.cuda.synchronisations").splitlines()[-1])
    assert counts == dict.fromkeys(counts, 1)
    assert len(counts) == 6
