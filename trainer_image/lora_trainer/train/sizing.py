"""What a job will take, phase by phase: the most memory, and the least time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from lora_api.job import MixedPrecision, Training

from .gpus import Gpu
from .plan import ACTIVATIONS, CONTEXT, HEADROOM, LIBRARIES, Machine, Plan, plans, shape_of
from .settings import DTYPES
from .trace import trace_pictures, trace_step

KEPT = {"cuda": 1.0, "cpu": 1.7}
"""What an allocator holds for each byte that lives: glibc keeps the pieces that were freed (measured on small models);
CUDA's are in the headroom."""
USED = {"cuda": 0.35, "cpu": 0.5}
"""Of a processor's peak, the share that training comes to."""


@dataclass(frozen=True)
class Sizes:
    """A job on a device."""

    plan: Plan
    """The chosen settings, and memory by term while it trains."""
    phases: dict[str, int]
    """Bytes at most, by what the step is doing."""
    operations: int
    """Floating-point operations of a step."""
    seconds: float
    """Of all steps, at least."""

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    @property
    def fits(self) -> bool:
        return self.peak <= HEADROOM * self.plan.free


def size(training: Training, folder: Path, machine: Machine, gpu: Gpu | None) -> Sizes:
    """What a job takes, with the settings that the trainer would choose; those of the last resort, if none fit.

    Args:
        folder: of the base model's pipeline; only its configurations are read.
        gpu: None for this machine's CPU, whose speed is measured.
    """
    dtype = DTYPES[training.mixed_precision]
    plan = None
    for plan in plans(training, folder, machine, dtype):
        if plan.fits:
            break
    assert plan is not None  # every job leaves one
    kept, libraries = KEPT[machine.device], CONTEXT[machine.device]
    step = trace_step(folder, shape_of(training, dtype, plan.checkpointing))
    encoding, decoding = trace_pictures(folder, training.resolution, dtype)
    vae = _vae_bytes(folder, dtype)
    resting = plan.total - plan.terms[ACTIVATIONS]
    terms = {
        **{name: value for name, value in plan.terms.items() if name not in (ACTIVATIONS, LIBRARIES)},
        "activations and working memory": int(kept * step.peak),
        LIBRARIES: libraries,
    }
    phases = {
        "encoding the pictures": libraries + vae + int(kept * encoding.peak),
        "training": sum(terms.values()),
        "drawing previews": resting + vae + int(kept * decoding.peak),
    }
    operations = step.operations * training.gradient_accumulation_steps
    rate = 1e12 * _teraflops(gpu, training) * USED[machine.device]
    return Sizes(
        Plan(terms, plan.checkpointing, machine.free),
        phases,
        operations,
        training.max_steps * operations / rate,
    )


def _teraflops(gpu: Gpu | None, training: Training) -> float:
    if gpu is None:
        return _measure_cpu()
    return gpu.single if training.mixed_precision == MixedPrecision.FP32 else gpu.half


def _measure_cpu(side: int = 512) -> float:
    """10**12 operations a second that this machine's matrix product comes to."""
    matrix = torch.ones(side, side)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best / 1e12


def _vae_bytes(folder: Path, dtype: torch.dtype) -> int:
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae"))
    count = sum(int(weight.numel()) for weight in vae.parameters())
    width: int = 4 if vae.config.force_upcast else dtype.itemsize
    return count * width
