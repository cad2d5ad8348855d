"""The moving average, against diffusers'."""

from __future__ import annotations

import pytest
import torch
from diffusers.training_utils import EMAModel

from lora_trainer.train.average import Average, standing_in


@pytest.mark.parametrize("decay", [0.3, 0.9999])
def test_it_is_that_of_diffusers(decay: float) -> None:
    chance = torch.Generator().manual_seed(0)
    parameters = {name: torch.nn.Parameter(torch.randn(3, 5, generator=chance)) for name in "ab"}
    other = EMAModel(parameters.values(), decay=decay)
    average = Average(parameters, decay)
    for step in range(1, 40):
        for parameter in parameters.values():
            parameter.data += torch.randn(3, 5, generator=chance)
        average.update(step)
        other.step(parameters.values())
        for value, wanted in zip(average.values.values(), other.shadow_params, strict=True):
            torch.testing.assert_close(value, wanted)
    assert not torch.allclose(average.values["a"], parameters["a"], atol=0.1)


def test_values_stand_in_for_a_while() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    with standing_in({"a": torch.ones(2)}, {"a": parameter}):
        assert parameter.tolist() == [1, 1]
    assert parameter.tolist() == [0, 0]
    with pytest.raises(RuntimeError), standing_in({"a": torch.ones(2)}, {"a": parameter}):
        raise RuntimeError
    assert parameter.tolist() == [0, 0]
    assert parameter.grad.tolist() == [1, 1]
