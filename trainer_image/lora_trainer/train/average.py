"""A moving average of what learns, over the steps: less of the last samples' chance than the last step has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter


class Average:
    """Parameters averaged over the steps, each older one weighing less by a factor; in float32, on their device."""

    def __init__(self, parameters: Mapping[str, Parameter], decay: float) -> None:
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._parameters = parameters
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the parameters in as they stand after a step, counted from 1."""
        news: list[Tensor] = [self._parameters[name] for name in self.values]
        torch._foreach_lerp_(list(self.values.values()), news, 1 - decay_after(step, self._decay))


def decay_after(step: int, most: float) -> float:
    """The share of itself that the average keeps at a step, counted from 1.

    It rises from 0, so that the average forgets how training began, as diffusers' EMAModel has it by default.
    """
    return min(most, step / (step + 9)) if step > 1 else 0.0


@contextmanager
def standing_in(values: Mapping[str, Tensor], parameters: Mapping[str, Parameter]) -> Iterator[None]:
    """Let parameters have other values for as long as the block lasts; nothing is copied."""
    own = {name: parameters[name].data for name in values}
    for name, value in values.items():
        parameters[name].data = value
    try:
        yield
    finally:
        for name, value in own.items():
            parameters[name].data = value
