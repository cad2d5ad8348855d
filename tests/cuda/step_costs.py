"""Trace one step of SDXL at full size on fake CUDA: `python -m tests.cuda.step_costs NAME...`; a JSON line for each.

For each configuration there are two traces: of the step on the device "cuda", and of the step on the CPU, from which
the memory plan is made.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import fake_cuda  # noqa: F401 - before torch

# isort: split
import torch

from lora_api.job import Adapter, QuantizeBase
from lora_trainer.train.memory.workloads import StepShape, trace_step

SDXL = Path(__file__).parents[2] / "trainer_image" / "lora_trainer" / "train" / "model" / "sdxl"
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "rank 16": {},
    "rank 4": {"rank": 4},
    "rank 32": {"rank": 32},
    "rank 128": {"rank": 128},
    "checkpointing": {"checkpointing": True},
    "rank 128, checkpointing": {"rank": 128, "checkpointing": True},
    "batch 4": {"batch_size": 4},
    "batch 4, checkpointing": {"batch_size": 4, "checkpointing": True},
    "512 px": {"resolution": 512},
    "512 px, checkpointing": {"resolution": 512, "checkpointing": True},
    "768 px": {"resolution": 768},
    "bf16": {"dtype": torch.bfloat16},
    "bf16, checkpointing": {"dtype": torch.bfloat16, "checkpointing": True},
    "fp32": {"dtype": torch.float32},
    "fp32, checkpointing": {"dtype": torch.float32, "checkpointing": True},
    "DoRA": {"adapter": Adapter(use_dora=True)},
    "DoRA, checkpointing": {"adapter": Adapter(use_dora=True), "checkpointing": True},
    "LoKr": {"adapter": Adapter(type="LoKr")},
    "LoKr, checkpointing": {"adapter": Adapter(type="LoKr"), "checkpointing": True},
    "LoHa": {"adapter": Adapter(type="LoHa")},
    "LoHa, checkpointing": {"adapter": Adapter(type="LoHa"), "checkpointing": True},
    "NF4": {"quantize_base": QuantizeBase.NF4},
    "Int8, checkpointing": {"quantize_base": QuantizeBase.INT8, "checkpointing": True},
    "text encoders": {"text_rank": 16},
    "text encoders, checkpointing": {"text_rank": 16, "checkpointing": True},
    "extract": {"rank": None},
    "extract, checkpointing": {"rank": None, "checkpointing": True},
}


def costs(name: str) -> dict[str, Any]:
    """Trace a configuration on both devices."""
    settings = {
        "rank": 16,
        "resolution": 1024,
        "batch_size": 1,
        "dtype": torch.float16,
        "checkpointing": False,
        **CONFIGURATIONS[name],
    }
    shape = StepShape(**settings)
    with tempfile.TemporaryDirectory() as cache:
        device, plan = (trace_step(SDXL, shape, Path(cache), kind).trace for kind in ("cuda", "cpu"))
    return {"name": name, "device": asdict(device), "plan": asdict(plan), "ratio": plan.peak / device.peak}


if __name__ == "__main__":
    for argument in sys.argv[1:] or CONFIGURATIONS:
        print(json.dumps(costs(argument)), flush=True)
