"""The memory plan: what a job will need, term by term, before its weights are loaded."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_api.exits import ExitCode
from lora_api.job import GradientCheckpointing, Method, Optimizer, QuantizeBase, Training
from lora_api.reasons import Reason
from lora_api.steps import TrainStep

from ..errors import BadConfigurationError, StepError
from ..runtime import load_config
from ..store import Store
from .adapter import TEXT_ENCODERS
from .base_model import provide_base_model
from .footprint import Shape, footprint
from .settings import DTYPES

GIB = 2**30
WEIGHT_BYTES = {QuantizeBase.NF4: 0.53, QuantizeBase.INT8: 1.01}
"""Per element, with the blocks' scales."""
STATE_BYTES = {
    Optimizer.ADAMW: 8.0,
    Optimizer.ADAMW_8BIT: 2.03,
    Optimizer.PRODIGY: 16.0,
    Optimizer.ADAFACTOR: 1.0,
}
"""Per trained element."""
CONTEXT = {"cuda": int(0.6 * GIB), "cpu": int(0.43 * GIB)}
"""What the libraries take for themselves."""
HEADROOM = 0.92
"""Of the free memory, the share that is planned with: the allocator cannot use all of it."""
ADVICE = (
    "set training.gradientCheckpointing to Auto, training.quantizeBase to NF4, lower resolution, batchSize or rank, "
    "or use a larger GPU"
)
ACTIVATIONS, LIBRARIES = "activations", "libraries"
FOOTPRINTS = "footprints"
"""The folder in the cache for what was measured before."""


@dataclass(frozen=True)
class Machine:
    """What a plan is for."""

    device: str
    """Its type, cuda or cpu."""
    free: int
    """Bytes free on it."""
    cache: Path
    """A folder for what was measured before."""


@dataclass(frozen=True)
class Plan:
    """Each term in bytes, and what was chosen."""

    terms: dict[str, int]
    checkpointing: bool
    free: int

    @property
    def total(self) -> int:
        return sum(self.terms.values())

    @property
    def fits(self) -> bool:
        return self.total <= HEADROOM * self.free

    def __str__(self) -> str:
        lines = [f"{name:<36}{size / GIB:>8.2f} GiB" for name, size in self.terms.items()]
        lines.append(f"{'in all':<36}{self.total / GIB:>8.2f} GiB of {self.free / GIB:.2f} GiB free")
        lines.append(f"gradient checkpointing: {'on' if self.checkpointing else 'off'}")
        return "\n".join(lines)


def make_plan(training: Training, folder: Path, machine: Machine, dtype: torch.dtype) -> Plan:
    """Choose what `Auto` leaves open: the fastest settings that fit. All that the job says is obeyed.

    Args:
        folder: of the base model's pipeline.

    Raises:
        BadConfigurationError: when nothing fits; with the sum, and what to change.
    """
    plan = None
    for plan in plans(training, folder, machine, dtype):
        if plan.fits:
            return plan
    raise BadConfigurationError(
        f"the job does not fit into memory:\n{plan}\n{ADVICE}",
        Reason.OUT_OF_MEMORY,
    )


def plans(training: Training, folder: Path, machine: Machine, dtype: torch.dtype) -> Iterator[Plan]:
    """The plans that a job leaves open, the fastest first. Only the configurations in `folder` are read."""
    extract = training.method == Method.DREAMBOOTH_EXTRACT
    choices = {
        GradientCheckpointing.AUTO: (False, True),
        GradientCheckpointing.ALWAYS: (True,),
        GradientCheckpointing.NEVER: (False,),
    }[training.gradient_checkpointing]
    # What is fine-tuned itself is kept in float32, and the rest of the UNet with it.
    per_weight = 4 if extract else WEIGHT_BYTES.get(training.quantize_base, dtype.itemsize)
    text = text_elements(folder) if training.text_encoder.train else 0
    for checkpointing in choices:
        sizes = footprint(folder, shape_of(training, dtype, checkpointing), machine.cache)
        terms = {
            "UNet, frozen": int(sizes.frozen * per_weight),
            **({"text encoders, frozen": text * dtype.itemsize} if text else {}),
            "what learns and its gradients, float32": 8 * sizes.trained,
            f"optimizer states, {training.optimizer}": int(STATE_BYTES[training.optimizer] * sizes.trained),
            **({"moving average, float32": 4 * sizes.trained} if training.ema_decay else {}),
            ACTIVATIONS: sizes.activations,
            LIBRARIES: CONTEXT[machine.device],
        }
        yield Plan(terms, checkpointing, machine.free)


def shape_of(training: Training, dtype: torch.dtype, checkpointing: bool) -> Shape:
    """What a job's footprint depends on."""
    return Shape(
        rank=None if training.method == Method.DREAMBOOTH_EXTRACT else training.rank,
        resolution=training.resolution,
        batch_size=training.batch_size * (1 + training.prior_preservation.enabled),
        dtype=dtype,
        checkpointing=checkpointing,
        kind=training.adapter,
        convolutions=training.extraction.convolutions,
    )


def text_elements(folder: Path) -> int:
    """How many weights the text encoders have."""
    classes = (CLIPTextModel, CLIPTextModelWithProjection)
    with torch.device("meta"):
        encoders = [
            kind(CLIPTextConfig.from_pretrained(folder, subfolder=name))
            for kind, name in zip(classes, TEXT_ENCODERS, strict=True)
        ]
    return sum(weight.numel() for encoder in encoders for weight in encoder.parameters())


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device."""
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


def footprints(config: TrainStep) -> Path:
    """Where a job keeps footprints: with the models, where it may write there."""
    return Path(config.work_dir if config.prefetched else config.cache_dir) / FOOTPRINTS


def print_plan(config_path: Path, memory: str) -> int:
    """`lora_trainer plan`: print a job's memory plan for a GPU of a given size, without one.

    Args:
        memory: as Kubernetes writes quantities, for example 24GiB or 24Gi.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)Gi?B?", memory)
    if match is None:
        print(f"--gpu {memory}: give the GPU's memory as 24GiB", file=sys.stderr)
        return ExitCode.BAD_CONFIGURATION
    try:
        config = load_config(config_path, TrainStep)
        training = config.spec.training
        model = provide_base_model(config, Store(config.store).input)
        free = int(float(match[1]) * GIB)
        machine = Machine("cuda", free, footprints(config))
        print(make_plan(training, model.folder, machine, DTYPES[training.mixed_precision]))
    except StepError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return ExitCode.OK
