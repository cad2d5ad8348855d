"""GPUs that people train on: what their makers say of them."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    memory: float
    """GiB that a program can have."""
    half: float
    """10**12 operations a second on dense matrices in 16 bits, accumulated in 32."""
    single: float
    """The same in float32, without tensor cores."""


GPUS = {
    "T4": Gpu(14.6, 65, 8.1),
    "V100": Gpu(15.8, 125, 15.7),
    "A10": Gpu(22.0, 125, 31.2),
    "L4": Gpu(22.0, 121, 30.3),
    "L40S": Gpu(44.4, 362, 91.6),
    "A100": Gpu(39.4, 312, 19.5),
    "A100-80GB": Gpu(79.2, 312, 19.5),
    "H100": Gpu(79.1, 989, 67),
    "H200": Gpu(139.8, 989, 67),
    "RTX3060": Gpu(11.8, 51, 12.7),
    "RTX3090": Gpu(23.7, 71, 35.6),
    "RTX4090": Gpu(23.6, 165, 82.6),
}
"""From NVIDIA's data sheets; memory as `nvidia-smi` shows it, less what the driver keeps."""
