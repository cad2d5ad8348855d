"""A step of SDXL at full size on fake CUDA: its cost, and the memory plan beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lora_trainer.train.memory.plan import ALLOCATION_FACTOR
from tests.cuda.build import build, missing_tool

pytestmark = pytest.mark.skipif(missing_tool() is not None, reason=str(missing_tool()))


def test_a_step_has_few_operations_and_the_plan_is_its_peak() -> None:
    build("fake")
    names = ["rank 16", "LoKr, checkpointing"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda.step_costs", *names],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert list(rows) == names, done.stderr[-3000:]
    step = rows["rank 16"]["device"]
    assert step["operations"] <= 9000
    assert step["copies"] <= 300
    assert step["traffic"] <= 75e9
    assert step["peak"] <= 5 * 2**30
    assert step["flops"] == pytest.approx(14.6e12, rel=0.02)
    for name, row in rows.items():
        assert 1 <= ALLOCATION_FACTOR["cuda"] * row["ratio"] <= 1.1, name
