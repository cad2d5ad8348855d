"""The moving average, against diffusers'."""

from __future__ import annotations

import pytest
import torch
from diffusers.training_utils import EMAModel

from lora_trainer.train.ema import EMA


@pytest.mark.parametrize("decay", [0.3, 0.9999])
def test_it_is_that_of_diffusers(decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = {name: torch.nn.Parameter(torch.randn(3, 5, generator=generator)) for name in "ab"}
    other = EMAModel(parameters.values(), decay=decay)
    average = EMA(parameters, decay)
    for step in range(1, 40):
        for parameter in parameters.values():
            parameter.data += torch.randn(3, 5, generator=generator)
        average.update(step)
        other.step(parameters.values())
        for value, expected in zip(average.shadow.values(), other.shadow_params, strict=True):
            torch.testing.assert_close(value, expected)
    assert not torch.allclose(average.shadow["a"], parameters["a"], atol=0.1)
