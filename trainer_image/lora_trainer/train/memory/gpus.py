"""Data of common GPUs, and estimates of the time that a traced step takes on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .trace import Trace

ACHIEVED = 0.6
"""Share of the peak rates that a step's matrix products and memory traffic reach."""


@dataclass(frozen=True)
class Gpu:
    """A device that runs a training step."""

    memory: float
    """Memory that a program can allocate, in GiB."""
    half: float
    """Peak rate of dense 16-bit matrix products with 32-bit accumulation, in 10**12 operations per second."""
    single: float
    """Peak rate in float32 without tensor cores, in 10**12 operations per second."""
    bandwidth: float
    """Memory bandwidth, in 10**9 bytes per second."""
    capability: tuple[int, int]
    """Compute capability."""
    launch: float = 6.0
    """Time that the CPU needs to launch a kernel, in microseconds."""


GPUS = {
    "T4": Gpu(14.6, 65, 8.1, 320, (7, 5)),
    "A10": Gpu(22.0, 125, 31.2, 600, (8, 6)),
    "L4": Gpu(22.0, 121, 30.3, 300, (8, 9)),
    "L40S": Gpu(44.4, 362, 91.6, 864, (8, 9)),
    "A100": Gpu(39.4, 312, 19.5, 1555, (8, 0)),
    "A100-80GB": Gpu(79.2, 312, 19.5, 2039, (8, 0)),
    "H100": Gpu(79.1, 989, 67, 3350, (9, 0)),
    "H200": Gpu(139.8, 989, 67, 4800, (9, 0)),
    "RTX3060": Gpu(11.8, 51, 12.7, 360, (8, 6)),
    "RTX3090": Gpu(23.7, 71, 35.6, 936, (8, 6)),
    "RTX4090": Gpu(23.6, 165, 82.6, 1008, (8, 9)),
}
"""Figures from NVIDIA's data sheets. The memory is what `nvidia-smi` shows, less what the driver reserves."""
UNSUPPORTED = {"V100": (7, 0), "P100": (6, 0), "P40": (6, 1), "GTX1080TI": (6, 1)}
"""Compute capability of GPUs that the pinned PyTorch has no kernels for."""


@dataclass(frozen=True)
class StepTime:
    """The estimated time of a step, in seconds, by part."""

    compute: float
    """Time of matrix products, convolutions and attention."""
    memory: float
    """Time of reading and writing memory."""
    launches: float
    """Time of the CPU to launch all kernels."""

    @property
    def seconds(self) -> float:
        """The total. Launches overlap with the work on the device; computing and memory traffic do not overlap."""
        return max(self.compute + self.memory, self.launches)


def step_time(trace: Trace, gpu: Gpu, *, is_float32: bool) -> StepTime:
    """Estimate the time of a traced batch.

    Args:
        is_float32: whether the batch is computed in float32.
    """
    rate = 1e12 * (gpu.single if is_float32 else gpu.half) * ACHIEVED
    return StepTime(
        trace.flops / rate,
        trace.traffic / (1e9 * gpu.bandwidth * ACHIEVED),
        trace.operations * gpu.launch / 1e6,
    )


def measure_cpu(side: int = 512) -> Gpu:
    """Measure the rates of this machine's CPU, as a device without launch times.

    Args:
        side: side of the square matrices that are multiplied.
    """
    half, single = (
        _measure_rate(torch.ones(side, side, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32)
    )
    block = torch.ones(2**24)
    # A copy reads and writes 4 bytes per element.
    bandwidth = 2 * 4 * block.numel() / _best_time(block.clone) / 1e9
    return Gpu(0, half, single, bandwidth, (0, 0), launch=0)


def _measure_rate(matrix: Tensor) -> float:
    """Return the rate of a product of square matrices, which takes 2 * side**3 operations, in TFLOP/s."""
    return 2 * matrix.shape[0] ** 3 / _best_time(lambda: matrix @ matrix) / 1e12


def _best_time(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best
