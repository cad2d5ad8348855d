"""Trace one training step of SDXL without a GPU, for this trainer and for diffusers' UNet with peft.

Usage: python -m benchmarks.bench_cuda_model [--quick]

The step has 1024 px, batch 1, rank 16 and fp16. It is traced without and with gradient checkpointing, on fake CUDA
(tests/cuda). Operations are those that run a kernel; traffic is the sum of all operands and results. The time on each
card is estimated from the matrix products, the traffic and the kernel launches alone. The memory plan is compared with
the traced peak for all configurations of tests/cuda/step_costs.py; with --quick, for four. How often a step waits for
the device is counted on a simulated device, in the trainer's own loop, for each optimizer. The last line of the output
is machine-readable; its `syncs` is the largest of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.cuda import fake_cuda  # noqa: F401 - before torch

# isort: split
import torch
from diffusers import UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode

from lora_trainer.train.memory.gpus import GPUS, step_time
from lora_trainer.train.memory.plan import ALLOCATION_FACTOR
from lora_trainer.train.memory.trace import Trace, Tracer, fake_weights
from lora_trainer.train.memory.workloads import StepShape, run_forward, trace_step
from lora_trainer.train.model.adapter import UNET, add_adapter
from lora_trainer.units import GIB
from tests.cuda.step_costs import CONFIGURATIONS, SDXL, costs

CARDS = ("H100", "A100", "L4", "RTX4090", "T4")
PLANNED = ("rank 16", "checkpointing", "DoRA", "LoKr")
"""The configurations whose memory plan is compared with --quick."""


def trace_diffusers(checkpointing: bool) -> Trace:
    """Trace diffusers' UNet with peft under autocast, as in its training script."""
    shape = StepShape(16, 1024, 1, torch.float16, checkpointing)
    with torch.device("meta"):
        config = UNet2DConditionModel.load_config(SDXL, subfolder="unet")
        unet: Any = UNet2DConditionModel.from_config(config)
        add_adapter(unet, UNET, 16, 16, seed=None)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()
    with FakeTensorMode(), torch.device("cuda"):
        tracer = Tracer(fake_weights(unet, torch.float16))
        with tracer:
            with torch.autocast("cuda", torch.float16):
                loss = run_forward(unet, shape).float().square().mean()
            loss.backward()
    return tracer.trace


def count_synchronisations() -> dict[str, int]:
    """Return how often a step waits for the device, by optimizer. The simulated device needs a process of its own."""
    command = [sys.executable, "-m", "tests.cuda.synchronisations"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return counts


def main() -> None:
    traces: dict[str, Trace] = {}
    with tempfile.TemporaryDirectory() as cache:
        for checkpointing in (False, True):
            suffix = ", checkpointing" if checkpointing else ""
            shape = StepShape(16, 1024, 1, torch.float16, checkpointing)
            traces[f"this trainer{suffix}"] = trace_step(SDXL, shape, Path(cache), "cuda").trace
            traces[f"diffusers and peft{suffix}"] = trace_diffusers(checkpointing)
    print(
        f"{'':<36}{'operations':>11}{'copies':>8}{'GB':>7}{'TFLOP':>7}{'GiB':>6}"
        + "".join(f"{card:>9}" for card in CARDS)
    )
    for name, trace in traces.items():
        numbers = (
            f"{trace.operations:>11}{trace.copies:>8}{trace.traffic / 1e9:>7.1f}{trace.flops / 1e12:>7.1f}"
        )
        times = "".join(
            f"{1000 * step_time(trace, GPUS[card], is_float32=False).seconds:>6.0f} ms" for card in CARDS
        )
        print(f"{name:<36}{numbers}{trace.peak / GIB:>6.2f}{times}")
    synchronisations = count_synchronisations()
    print("synchronisations of a step: " + ", ".join(f"{name} {n}" for name, n in synchronisations.items()))
    names = PLANNED if "--quick" in sys.argv else list(CONFIGURATIONS)
    ratios = {}
    for name in names:
        ratios[name] = ALLOCATION_FACTOR["cuda"] * costs(name)["ratio"]
        print(f"plan over peak, {name:<32}{ratios[name]:>7.3f}", flush=True)
    worst = max(ratios.values(), key=lambda ratio: abs(ratio - 1.05))
    trainer, diffusers = traces["this trainer"], traces["diffusers and peft"]
    figures = {
        "operations": trainer.operations,
        "copies": trainer.copies,
        "gigabytes": round(trainer.traffic / 1e9, 1),
        "tflop": round(trainer.flops / 1e12, 2),
        "peak_gib": round(trainer.peak / GIB, 2),
        "plan_worst": round(worst, 3),
        "operations_ratio": round(trainer.operations / diffusers.operations, 3),
        "gigabytes_ratio": round(trainer.traffic / diffusers.traffic, 3),
        "syncs": max(synchronisations.values()),
    }
    print("RESULT " + " ".join(f"{name}={value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
