"""Pairs of settings on the simulated GPU: those that have every value, and in `make matrix` all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from lora_api.job import parse_spec
from tests.cuda.build import missing_tool
from tests.integration.train.conftest import (
    JobMaker,
    clean_images,
    make_job,
    model_cache,
    shallow_sdxl,
    tiny_sdxl,
)
from tests.integration.train.test_on_cuda import Device
from tests.support import matrix

__all__ = ["clean_images", "make_job", "model_cache", "shallow_sdxl", "tiny_sdxl"]
pytestmark = pytest.mark.skipif(missing_tool() is not None, reason=str(missing_tool()))

FULL = os.environ.get("MATRIX") == "full"
SOME = 9
"""Number of rows that have every value."""
ROWS = matrix.all_rows(matrix.SIMULATED_GPU) if FULL else matrix.some_rows(matrix.SIMULATED_GPU, SOME)


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with Device() as started:
        yield started


def test_the_rows_have_every_value() -> None:
    assert matrix.missing_values(ROWS, matrix.parameters(matrix.SIMULATED_GPU)) == []


@pytest.mark.parametrize("row", ROWS, ids=[f"run {number}" for number in range(len(ROWS))])
def test_settings_train_together_on_a_gpu(
    make_job: JobMaker, shallow_sdxl: Path, device: Device, record_property: Any, row: matrix.Row
) -> None:
    record_property("run", 1)
    parts = matrix.settings(row, matrix.SIMULATED_GPU.base)
    # The maker's jobs train on the CPU, which has no fp16.
    settings = {**parts["training"], "mixedPrecision": "fp32"}
    job = make_job(model=shallow_sdxl, output=parts["output"], **settings)
    wire = job.config.spec.to_wire()
    wire["training"]["mixedPrecision"] = row["training.mixedPrecision"]
    wire["resources"] = {"train": {"gpus": 1}}
    job = job.with_config(spec=parse_spec(wire))
    outcome = device.run(job)
    assert outcome["code"] == 0, outcome["result"]
    name = "adapter.safetensors" if "diffusers" in row["output.formats"] else "adapter-kohya.safetensors"
    tensors = load(job.attempt_file(name))
    assert tensors
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    # In fp16 the loss scale may be too high for the first steps, which are then skipped.
    assert any(record["not_finite"] is None for record in job.records())
