"""Rank dropout: during training, each rank of a layer is dropped with a given probability p.

As in LyCORIS and kohya's scripts, ranks are dropped per sample and layer, and the others are scaled by 1 / (1 - p).
The masks depend only on the seed and the sample's stream and number, like all random values (see `data.rng`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Conv2d

from .data.rng import generator_for
from .data.transfer import to_device
from .model.adapter import ADAPTER, adapter_layers
from .objective import Batch


class RankDropout:
    """Drops ranks of a UNet's LoRA layers within `applied`."""

    def __init__(self, unet: Any, probability: float, seed: int) -> None:
        """Register the hooks.

        Call it before `fuse` and `make_memory_efficient`, which leave layers with hooks as they are.
        """
        self._probability = probability
        self._seed = seed
        self._masks: list[Tensor] = []
        self._ranks: list[int] = []
        for index, (_, layer) in enumerate(adapter_layers(unet)):
            down = layer.lora_A[ADAPTER]
            self._ranks.append(layer.r[ADAPTER])
            down.register_forward_hook(_Hook(self, index, isinstance(down, Conv2d)))

    @contextmanager
    def applied(self, batch: Batch) -> Iterator[None]:
        """Apply the masks of a batch's samples within the block."""
        rows = [
            torch.rand(sum(self._ranks), generator=generator_for(self._seed, stream, "rank dropout", sample))
            for stream, sample in batch.samples
        ]
        kept = (torch.stack(rows) >= self._probability).float() / (1 - self._probability)
        # One random tensor for all layers, split by layer, costs less than a generator for each layer.
        self._masks = list(to_device(kept, batch.latents.device).split(self._ranks, dim=1))
        try:
            yield
        finally:
            self._masks = []

    def mask(self, layer: int) -> Tensor | None:
        """Return the mask of a layer by its index: float32, (n, rank), 0 or 1 / (1 - p); None outside of `applied`."""
        return self._masks[layer] if self._masks else None


class _Hook:
    """A forward hook on `lora_A` that multiplies its output by the layer's mask."""

    def __init__(self, dropout: RankDropout, index: int, is_convolution: bool) -> None:
        self._dropout = dropout
        self._index = index
        self._is_convolution = is_convolution

    def __call__(self, module: Any, inputs: Any, output: Tensor) -> Tensor | None:
        mask = self._dropout.mask(self._index)
        if mask is None:
            return None  # keeps the output
        count, rank = mask.shape
        ones = [1] * (output.dim() - 2)
        # Ranks are the channels of a convolution's output, and the last dimension of a linear layer's.
        shape = [count, rank, *ones] if self._is_convolution else [count, *ones, rank]
        return output * mask.view(shape).to(output.dtype)
