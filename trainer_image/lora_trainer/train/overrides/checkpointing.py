"""Gradient checkpointing without the random state of the device."""

from __future__ import annotations

from functools import partial
from typing import Any

from diffusers import UNet2DConditionModel
from torch.utils.checkpoint import checkpoint


def enable_checkpointing(unet: UNet2DConditionModel) -> None:
    """Let a UNet compute the activations of its blocks again in the backward pass.

    By default, PyTorch saves and restores the device's random state around each block, which it cannot do while a CUDA
    graph is captured. A UNet draws no random number in training: rank dropout has masks of its own.
    """
    run: Any = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    unet.enable_gradient_checkpointing(lambda module, *args: run(module.__call__, *args))
