"""Recognition of errors that mean that a GPU's memory is full."""

from __future__ import annotations

import torch

PHRASES = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "cudaErrorMemoryAllocation",
    "NCCL error: unhandled cuda error: out of memory",
)
"""Texts of the RuntimeErrors of CUDA libraries. PyTorch's allocator raises `torch.OutOfMemoryError` instead."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, means that a GPU's memory is full."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, torch.OutOfMemoryError):
            return True
        if isinstance(current, RuntimeError) and any(phrase in str(current) for phrase in PHRASES):
            return True
        current = current.__cause__
    return False
