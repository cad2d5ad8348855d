"""Overrides of optimizers that need fewer kernel launches, or do not wait for the GPU."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import torch
from came_pytorch import CAME
from torch import Tensor
from transformers.optimization import Adafactor


class AdamW8bit(bitsandbytes.optim.AdamW8bit):  # type: ignore[misc]
    """bitsandbytes' AdamW8bit that does not wait for the GPU after each parameter."""

    initialized: bool

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Step all parameters that have a gradient.

        Args:
            closure: not supported; the parameter is that of `torch.optim.Optimizer`.
        """
        assert closure is None
        if not self.initialized:
            self.check_overrides()
            self.to_gpu()
            self.initialized = True
        for number, group in enumerate(self.param_groups):
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                if not self.state[parameter]:
                    self.init_state(group, parameter, number, index)
                self.update_step(group, parameter, number, index)


class StackedAdafactor(Adafactor):  # type: ignore[misc]
    """Adafactor over stacks of matrices of one shape, with the steps of single matrices.

    Its moments by row and column are those of the last two dimensions. Only the size of an update, which is clipped,
    would be that of the whole stack.
    """

    def _rms(self, tensor: Tensor) -> Tensor:
        return root_mean_squares(tensor)


class StackedCAME(CAME):  # type: ignore[misc]
    """CAME over stacks of matrices of one shape, with the steps of single matrices: see `StackedAdafactor`."""

    def _rms(self, tensor: Tensor) -> Tensor:
        return root_mean_squares(tensor)


def root_mean_squares(tensor: Tensor) -> Tensor:
    """Return the root mean square of each matrix of a stack, or of a vector.

    Args:
        tensor: a stack, (number, ..., out, in), or a vector, (n,).

    Returns:
        (number, 1, ..., 1) for a stack, () for a vector.
    """
    if tensor.dim() == 1:
        return tensor.square().mean().sqrt()
    means = tensor.flatten(1).square().mean(dim=1).sqrt()
    return means.view(-1, *[1] * (tensor.dim() - 1))
