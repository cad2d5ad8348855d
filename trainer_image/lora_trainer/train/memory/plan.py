"""The memory plan: an estimate of the memory that each phase of a job needs, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_api.job import (
    AdapterType,
    GradientCheckpointing,
    Method,
    MixedPrecision,
    Optimizer,
    QuantizeBase,
    Training,
)
from lora_api.reasons import Reason

from ...errors import BadConfigurationError
from ...new_tokens import tokens_of
from ...units import GIB
from ..model.precision import compute_dtype
from .trace import Trace
from .workloads import TILE, StepShape, text_elements, trace_step, trace_vae, vae_bytes

WEIGHT_BYTES = {QuantizeBase.NF4: 0.53, QuantizeBase.INT8: 1.01}
"""Bytes per element of a quantized weight, including the scales of its blocks."""
STATE_BYTES = {
    Optimizer.ADAMW: 8.0,
    Optimizer.ADAMW_8BIT: 2.03,
    Optimizer.PRODIGY: 16.0,
    Optimizer.ADAFACTOR: 1.0,
    Optimizer.CAME: 5.0,
    Optimizer.PRODIGY_SCHEDULE_FREE: 5.0,
}
"""Bytes of optimizer state per trained element."""
LIBRARY_BYTES = {"cuda": int(0.6 * GIB), "cpu": int(0.48 * GIB)}
"""Bytes that PyTorch and its libraries use themselves, such as the CUDA context."""
ALLOCATION_FACTOR = {"cuda": 1.05, "cpu": 1.7}
"""Bytes that are allocated for each byte of live tensors. On a CPU, glibc keeps freed memory (measured on small
models). On CUDA, kernels need memory besides their results: 1.0 to 4.0% of a step in 17 cases on an H200
(docs/how-to/gpu-bench.md). HEADROOM covers what the CUDA allocator keeps."""
HEADROOM = 0.92
"""Share of the free memory that a plan may use, because the allocator cannot use all of it."""
WORKING_MEMORY = "activations and working memory"
"""Name of the term of a plan for the forward and backward pass of a batch."""
TRACES = "traces"
"""Name of the folder of cached traces, in the model cache or the work folder."""


@dataclass(frozen=True)
class Machine:
    """The device that a plan is made for."""

    device: str
    """Type of the device: cuda or cpu."""
    free: int
    """Free memory, in bytes."""
    cache: Path
    """A folder for cached traces."""


@dataclass(frozen=True)
class Plan:
    """The estimated memory of a job with chosen settings, in bytes."""

    terms: dict[str, int]
    """Parts of the training phase's peak."""
    phases: dict[str, int]
    """Peak of each phase."""
    checkpointing: bool
    """Whether gradient checkpointing is on."""
    step: Trace
    """Forward and backward pass of one batch."""
    free: int
    """Free memory of the device."""

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    @property
    def working_memory(self) -> int:
        """Bytes that the forward and backward pass of a batch need beside what is kept between steps."""
        return self.terms[WORKING_MEMORY]

    @property
    def fits(self) -> bool:
        return self.peak <= HEADROOM * self.free

    def __str__(self) -> str:
        rows = [*self.terms.items(), *((f"total, {name}", value) for name, value in self.phases.items())]
        lines = [f"{name:<36}{size / GIB:>8.2f} GiB" for name, size in rows]
        lines.append(f"{'peak':<36}{self.peak / GIB:>8.2f} GiB of {self.free / GIB:.2f} GiB free")
        lines.append(f"gradient checkpointing: {'on' if self.checkpointing else 'off'}")
        return "\n".join(lines)


def make_plan(training: Training, folder: Path, machine: Machine, dtype: torch.dtype) -> Plan:
    """Choose the settings that are `Auto`: the fastest ones that fit into memory.

    Args:
        folder: folder of the base model's pipeline, of which only the configurations are read.
        dtype: number format of the frozen base model.

    Raises:
        BadConfigurationError: if nothing fits. The message has the plan and advice.
    """
    plan = best_plan(training, folder, machine, dtype)
    if not plan.fits:
        raise BadConfigurationError(
            f"the job does not fit into memory:\n{plan}\n{memory_advice(training)}",
            Reason.OUT_OF_MEMORY,
        )
    return plan


def memory_advice(training: Training) -> str:
    """Say which settings would need less memory, of those that the job can still change."""
    advice = []
    if training.gradient_checkpointing == GradientCheckpointing.NEVER:
        advice.append("set training.gradientCheckpointing to Auto")
    quantizable = training.adapter.type == AdapterType.LORA and not training.adapter.use_dora
    is_extract = training.method == Method.DREAMBOOTH_EXTRACT
    if training.quantize_base != QuantizeBase.NF4 and quantizable and not is_extract:
        advice.append("set training.quantizeBase to NF4")
    if training.mixed_precision == MixedPrecision.FP32:
        advice.append("set training.mixedPrecision to bf16 or fp16")
    lower = ["resolution", *(["batchSize"] if training.batch_size > 1 else []), "rank"]
    return ", ".join([*advice, f"lower training.{' or training.'.join(lower)}", "or use a larger GPU"])


def best_plan(training: Training, folder: Path, machine: Machine, dtype: torch.dtype) -> Plan:
    """Return the fastest plan that fits or, if none does, the smallest one."""
    plan = None
    for plan in _plans(training, folder, machine, dtype):
        if plan.fits:
            break
    assert plan is not None  # every value of gradientCheckpointing allows at least one plan
    return plan


def _plans(training: Training, folder: Path, machine: Machine, dtype: torch.dtype) -> Iterator[Plan]:
    """Yield the plans that a job's settings allow, the fastest first."""
    choices = {
        GradientCheckpointing.AUTO: (False, True),
        GradientCheckpointing.ALWAYS: (True,),
        GradientCheckpointing.NEVER: (False,),
    }[training.gradient_checkpointing]
    allocated, libraries = ALLOCATION_FACTOR[machine.device], LIBRARY_BYTES[machine.device]
    vae = vae_bytes(folder, dtype)
    # Images are encoded once, in float32. Previews are decoded in the job's number format.
    encoding = trace_vae(folder, training.resolution, torch.float32, machine.cache)[0]
    decoding = trace_vae(folder, training.resolution, dtype, machine.cache)[1]
    for checkpointing in choices:
        step = trace_step(folder, shape_of(training, dtype, checkpointing), machine.cache)
        held = _held_between_steps(training, folder, dtype, step.frozen, step.trained)
        terms = {
            **held,
            WORKING_MEMORY: int(allocated * step.trace.peak),
            "libraries": libraries,
        }
        idle = libraries + sum(held.values())
        sampling = idle + vae + int(allocated * decoding.peak)
        if sampling > HEADROOM * machine.free:  # the VAE then decodes tile by tile
            tile = min(training.resolution, TILE)
            tiled = trace_vae(folder, tile, dtype, machine.cache)[1]
            sampling = idle + vae + int(allocated * tiled.peak)
        phases = {
            "encoding images": libraries + vae_bytes(folder, torch.float32) + int(allocated * encoding.peak),
            "training": sum(terms.values()),
            "generating previews": sampling,
        }
        yield Plan(terms, phases, checkpointing, step.trace, machine.free)


def _held_between_steps(
    training: Training, folder: Path, dtype: torch.dtype, frozen: int, trained: int
) -> dict[str, int]:
    """Return the bytes that a job holds between two steps, by term.

    Args:
        frozen: number of frozen elements.
        trained: number of trained elements.
    """
    per_weight = WEIGHT_BYTES.get(training.quantize_base, dtype.itemsize)
    terms = {"UNet, frozen": int(frozen * per_weight)}
    if training.text_encoder.train or training.token_embeddings.train:
        terms["text encoders, frozen"] = text_elements(folder) * dtype.itemsize
    # 4 bytes of weight and 4 bytes of gradient.
    terms["trained weights and gradients, float32"] = 8 * trained
    if (computing := compute_dtype(training.adapter, dtype)) != torch.float32:
        terms["trained weights, 16 bits"] = computing.itemsize * trained
    terms[f"optimizer states, {training.optimizer}"] = int(STATE_BYTES[training.optimizer] * trained)
    if training.ema_decay:
        terms["moving average, float32"] = 4 * trained
    return terms


def shape_of(training: Training, dtype: torch.dtype, checkpointing: bool) -> StepShape:
    """Return the settings that determine the cost of a job's step."""
    return StepShape(
        rank=None if training.method == Method.DREAMBOOTH_EXTRACT else training.rank,
        resolution=training.resolution,
        batch_size=training.batch_size * (1 + training.prior_preservation.enabled),
        dtype=dtype,
        checkpointing=checkpointing,
        adapter=training.adapter,
        convolutions=training.extraction.convolutions,
        quantize_base=training.quantize_base,
        new_tokens=len(tokens_of(training)),
        text_rank=training.rank if training.text_encoder.train else 0,
    )


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device, in bytes; on a CPU, within the limit of the container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # no cgroup of version 2
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))
