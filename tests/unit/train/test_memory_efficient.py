from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from lora_trainer.train.model.adapter import UNET, add_adapter, trainable
from lora_trainer.train.model.extract import make_trainable
from lora_trainer.train.model.tiny import write_tiny_sdxl
from lora_trainer.train.overrides.fused import fuse
from lora_trainer.train.overrides.memory_efficient import make_memory_efficient


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> UNet2DConditionModel:
    folder: Path = tmp_path_factory.mktemp("tiny")
    write_tiny_sdxl(folder)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").train()
    add_adapter(unet, UNET, rank=4, alpha=4, seed=0)
    for name, parameter in trainable({UNET: unet}).items():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return unet


def learn(unet: UNet2DConditionModel, dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], int]:
    """The output and every gradient of a step, and the bytes that its forward pass kept."""
    generator = torch.Generator().manual_seed(0)
    kept: dict[int, torch.UntypedStorage] = {}
    own = {parameter.data_ptr() for parameter in unet.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16),
    ):
        output = unet(
            torch.randn(2, 4, 8, 8, generator=generator).to(dtype),
            torch.tensor([3, 900]),
            torch.randn(2, 77, 64, generator=generator).to(dtype),
            added_cond_kwargs={"text_embeds": torch.zeros(2, 32, dtype=dtype), "time_ids": torch.zeros(2, 6)},
        ).sample
    output.float().square().mean().backward()
    gradients = [p.grad for p in unet.parameters() if p.requires_grad]
    assert None not in gradients
    size = sum(storage.nbytes() for storage in kept.values())
    return [output.detach(), *gradients], size


@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointing"])
def test_values_and_gradients_are_the_same_and_less_is_kept(
    unet: UNet2DConditionModel, checkpointing: bool
) -> None:
    plain, efficient = deepcopy(unet).double(), deepcopy(unet).double()
    fuse(efficient)
    make_memory_efficient(efficient)
    if checkpointing:
        plain.enable_gradient_checkpointing()
        efficient.enable_gradient_checkpointing()
    (expected, much), (found, little) = learn(plain, torch.float64), learn(efficient, torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert len(found) == 193
    if not checkpointing:
        assert little < 0.8 * much


def test_in_half_precision_it_is_the_same_within_its_rounding(unet: UNet2DConditionModel) -> None:
    plain, efficient = deepcopy(unet), deepcopy(unet)
    for model in (plain, efficient):
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    make_memory_efficient(efficient)
    (expected, much), (found, little) = learn(plain, torch.bfloat16), learn(efficient, torch.bfloat16)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 0.02 * other.norm()
    assert little < 0.85 * much


def test_layers_that_learn_learn(unet: UNet2DConditionModel) -> None:
    plain, efficient = deepcopy(unet), deepcopy(unet)
    for model in (plain, efficient):
        make_trainable(model)
        model.conv_in.requires_grad_(True)
        model.zero_grad()
    make_memory_efficient(efficient)
    (expected, _), (found, _) = learn(plain), learn(efficient)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
