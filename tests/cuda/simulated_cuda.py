"""Simulated CUDA: tensors claim the device cuda:0 and live in CPU memory, so that results are real numbers.

Import before torch. Not simulated: the speed, the memory, and bitsandbytes' CUDA kernels, whose CPU versions run.
`simulated_group` replaces NCCL. `DEVICE` has the properties that the device reports; a test changes them before the
trainer starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from .build import build

# bitsandbytes compiles operators that have no kernel for the device, and the compiler ends the process on this one.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

_library = ctypes.CDLL(str(build("simulated")), mode=ctypes.RTLD_GLOBAL)

import bitsandbytes  # noqa: E402, F401 - before torch.cuda is there: it would look for its CUDA library
import torch  # noqa: E402
import torch.cuda.amp.common  # noqa: E402

_library.simulate_cuda()
_library.cuda_synchronisations.restype = ctypes.c_long
GIB = 2**30


@dataclass
class Device:
    """The properties that the simulated device reports."""

    name: str = "Simulated GPU"
    capability: tuple[int, int] = (9, 0)
    total: int = 80 * GIB
    """Memory of the device, in bytes."""
    free: int = 40 * GIB
    """Free memory, in bytes."""
    peak: int = 3 * GIB
    """Peak of the allocated memory, in bytes."""
    synchronised: int = 0
    """Calls of torch.cuda.synchronize."""
    wait: float = 0
    """Seconds that such a call takes."""


DEVICE = Device()


def synchronisations() -> int:
    """Return how often the CPU has waited for the device: scalars read, tensors moved off it, explicit calls."""
    return int(_library.cuda_synchronisations()) + DEVICE.synchronised


def set_wait(seconds: float) -> None:
    """Set how long the CPU waits for the device wherever it reads a tensor or copies to it."""
    _library.cuda_wait(ctypes.c_long(int(seconds * 1e6)))


class _SelectedDevice(contextlib.AbstractContextManager[None]):
    """`torch.cuda.device`, without effect: there is one device."""

    def __init__(self, *_: object) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _synchronize(*_: object) -> None:
    DEVICE.synchronised += 1
    time.sleep(DEVICE.wait)


def _properties(*_: object) -> SimpleNamespace:
    major, minor = DEVICE.capability
    return SimpleNamespace(
        major=major, minor=minor, name=DEVICE.name, total_memory=DEVICE.total, multi_processor_count=1
    )


_empty = torch.empty


def _limit_memory(fraction: float, *_: Any) -> None:
    """Let `torch.empty` fail as on a full device for tensors above the limit. Other allocations are not counted."""
    limit = fraction * DEVICE.total

    def empty(*size: Any, **options: Any) -> torch.Tensor:
        if torch.device(options.get("device") or "cpu").type == "cuda":
            required = _empty(*size, **{**options, "device": "meta"}).nbytes
            if required > limit:
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {required / GIB:.2f} GiB."
                )
        return _empty(*size, **options)

    torch.empty = empty if fraction < 1 else _empty


torch.cuda.amp.common.amp_definitely_not_available = lambda: False
for _name, _function in {
    "is_available": lambda: True,
    "is_bf16_supported": lambda *_, **__: True,
    "device_count": lambda: int(os.environ.get("SIMULATED_GPUS", "1")),
    "current_device": lambda: 0,
    "set_device": lambda *_: None,
    "is_initialized": lambda: True,
    "_lazy_init": lambda: None,
    "init": lambda: None,
    "empty_cache": lambda: None,
    "synchronize": _synchronize,
    "mem_get_info": lambda *_: (DEVICE.free, DEVICE.total),
    "max_memory_allocated": lambda *_: DEVICE.peak,
    "max_memory_reserved": lambda *_: DEVICE.peak,
    "memory_allocated": lambda *_: 0,
    "memory_reserved": lambda *_: 0,
    "reset_peak_memory_stats": lambda *_: None,
    "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
    "set_rng_state": lambda *_: None,
    "get_device_capability": lambda *_: DEVICE.capability,
    "get_device_name": lambda *_: DEVICE.name,
    "get_device_properties": _properties,
    "set_per_process_memory_fraction": _limit_memory,
    "device": _SelectedDevice,
}.items():
    setattr(torch.cuda, _name, _function)
torch.Tensor.pin_memory = lambda tensor, *_, **__: tensor

from . import simulated_graphs  # noqa: E402, F401 - replaces torch.cuda's streams and graphs
