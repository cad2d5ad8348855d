"""Checks of settings against the machine, before anything is loaded. `lora_api.rules` checks the other settings."""

from __future__ import annotations

import torch

from lora_api.job import MixedPrecision, Training
from lora_api.stages import TrainConfig

from ..errors import BadConfigurationError, BadSetupError

DTYPES = {
    MixedPrecision.FP16: torch.float16,
    MixedPrecision.BF16: torch.bfloat16,
    MixedPrecision.FP32: torch.float32,
}
OLDEST_CAPABILITY = (7, 5)
"""Lowest compute capability that the pinned PyTorch has kernels for. V100 (7.0) and P100 (6.0) are below it."""
BF16_CAPABILITY = (8, 0)
"""Lowest compute capability with bf16. Older GPUs, such as T4 (7.5), emulate it, many times slower than fp16."""


def check_gpu(training: Training, device: torch.device) -> None:
    """Check that PyTorch has kernels for the GPU, and that the GPU computes in the job's number format.

    Raises:
        BadSetupError: for a GPU without kernels.
        BadConfigurationError: for bf16 on a GPU that emulates it.
    """
    if device.type == "cuda":
        check_capability(
            training, torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        )


def check_capability(training: Training, gpu: str, capability: tuple[int, int]) -> None:
    """Check a GPU by its compute capability, as `check_gpu` does.

    Args:
        gpu: name of the GPU, for messages.
    """
    name = f"{gpu} (compute capability {'.'.join(map(str, capability))})"
    if capability < OLDEST_CAPABILITY:
        raise BadSetupError(
            f"the GPU {name} is not supported: PyTorch {torch.__version__} has kernels from compute capability 7.5 on "
            "(T4 and newer); schedule the job on another GPU by scheduling.nodeSelector"
        )
    if training.mixed_precision == MixedPrecision.BF16 and capability < BF16_CAPABILITY:
        raise BadConfigurationError(
            f"training.mixedPrecision: the GPU {name} has no bf16; set it to fp16, or use a GPU of compute "
            "capability 8.0 or newer"
        )


def choose_dtype(training: Training, device: torch.device) -> torch.dtype:
    """Return the base model's number format.

    Raises:
        BadConfigurationError: for fp16 on a CPU, which PyTorch would silently run in float32.
    """
    if device.type == "cpu" and training.mixed_precision == MixedPrecision.FP16:
        raise BadConfigurationError(
            "training.mixedPrecision: fp16 does not run on a CPU; set it to fp32 or bf16, or give the job a GPU"
        )
    return DTYPES[training.mixed_precision]


def find_emulation(training: Training, device: torch.device) -> str:
    """Return a warning for bf16 on a CPU that emulates it; empty for everything else.

    Without AVX512 or AMX, PyTorch multiplies matrices in bf16 up to a hundred times slower than in float32.
    """
    if device.type != "cpu" or training.mixed_precision != MixedPrecision.BF16 or not emulates_bf16():
        return ""
    return "training.mixedPrecision: this CPU emulates bf16, many times slower than float32; set it to fp32"


def emulates_bf16() -> bool:
    """Whether this machine's CPU has no instructions for bf16. False where PyTorch cannot tell."""
    return torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def choose_cpu(config: TrainConfig) -> bool:
    """Return whether to train on the CPU.

    Raises:
        BadSetupError: if PyTorch sees fewer GPUs than the job asks for.
    """
    gpus = config.spec.resources.train.gpus
    if gpus and torch.cuda.device_count() < gpus:
        raise BadSetupError(
            f"the job asks for {gpus} GPU(s) and PyTorch sees {torch.cuda.device_count()}: "
            "check the node's driver, or set resources.train.gpus to 0 to train on the CPU"
        )
    return gpus == 0
