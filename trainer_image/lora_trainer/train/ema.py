"""An exponential moving average of the trained parameters.

The decay at each step equals that of diffusers' `EMAModel`; a test compares them. The class itself is not used, because
with `foreach` it allocates another copy of all parameters in each step (10 GB when SDXL is fine-tuned), and without it
launches three kernels for each parameter. Measuring with it (`store`, `copy_to`, `restore`) also copies all parameters
to the CPU and back.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter


class EMA:
    """A moving average of parameters.

    `shadow` has the averages by name, in float32, on the parameters' device.
    """

    def __init__(self, parameters: Mapping[str, Parameter], decay: float) -> None:
        self.shadow = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._parameters = parameters
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the parameters after a step, which is counted from 1."""
        current: list[Tensor] = [self._parameters[name] for name in self.shadow]
        torch._foreach_lerp_(list(self.shadow.values()), current, 1 - decay_at(step, self._decay))


def decay_at(step: int, decay: float) -> float:
    """Compute the weight of the previous average at a step, which is counted from 1.

    It rises from 0 to `decay`, so that the initial parameters have no lasting weight.
    """
    return min(decay, step / (step + 9)) if step > 1 else 0.0
