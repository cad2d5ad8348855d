from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from lora_trainer.train.overrides.fused import fuse


def network() -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.GELU(), torch.nn.Linear(40, 16, bias=False))
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["0", "2"])
    adapted = inject_adapter_in_model(config, plain).requires_grad_(False)
    for name, parameter in adapted.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
        parameter.requires_grad_("lora_" in name)
    return adapted


@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 3, 24)])
def test_values_and_gradients_are_pefts(shape: tuple[int, ...]) -> None:
    plain, fused = network().double(), network().double()
    fuse(fused)
    inputs = torch.randn(shape if len(shape) > 1 else (1, *shape), dtype=torch.float64)
    outcomes = []
    for model in (plain, fused):
        x = inputs.clone().requires_grad_()
        y = model(x)
        y.square().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        assert len(gradients) == 4
        outcomes.append([y, x.grad, *gradients])
    for expected, found in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_an_adapter_that_is_switched_off_is_off() -> None:
    model = network()
    fuse(model)
    x = torch.randn(3, 24)
    adapted = model(x)
    for layer in (model[0], model[2]):
        layer.enable_adapters(False)
    base = torch.nn.functional.gelu(model[0].base_layer(x)) @ model[2].base_layer.weight.t()
    torch.testing.assert_close(model(x), base)
    assert not torch.allclose(adapted, base)
