"""Extraction, against the SVD and planted changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from lora_trainer.train.extract import extract, factorise, linear_weights, put_adapter
from lora_trainer.train.tiny import write_tiny_sdxl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_tiny_sdxl(path)
    return path


def unet(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()


@torch.no_grad()
def predict(model: UNet2DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    conditions = {
        "text_embeds": torch.randn(1, 32, generator=generator),
        "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]),
    }
    latent = torch.randn(1, 4, 8, 8, generator=generator)
    text = torch.randn(1, 77, 64, generator=generator)
    return model(latent, torch.tensor([500]), text, added_cond_kwargs=conditions).sample


def tuned(folder: Path, names: list[str] | None = None) -> UNet2DConditionModel:
    """A UNet some of whose layers were changed."""
    model = unet(folder)
    generator = torch.Generator().manual_seed(0)
    for name, weight in linear_weights(model).items():
        if names is None or name in names:
            weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    return model


def error(found: UNet2DConditionModel, wanted: UNet2DConditionModel) -> float:
    return float((predict(found) - predict(wanted)).norm() / predict(wanted).norm())


@pytest.mark.parametrize("alpha", [512, 64])
def test_every_layer_at_full_rank_is_the_fine_tuned_model(
    folder: Path, alpha: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_trainer.train.extract.KEEP", 1.0)
    fine, base = tuned(folder), unet(folder)
    assert error(base, fine) > 0.05
    factors = extract(linear_weights(fine), linear_weights(base), rank=512)
    put_adapter(base, factors, 512, alpha)
    assert error(base, fine) < 1e-3


def test_what_selection_leaves_out_is_little(folder: Path) -> None:
    fine, base = tuned(folder), unet(folder)
    before = error(base, fine)
    factors = extract(linear_weights(fine), linear_weights(base), rank=512)
    put_adapter(base, factors, 512, 512)
    assert error(base, fine) < 0.03 * before


@torch.no_grad()
def test_energy_kept_is_the_svds(folder: Path) -> None:
    rank = 5
    weights, base = linear_weights(tuned(folder)), linear_weights(unet(folder))
    factors = extract(weights, base, rank)
    for name, layer in factors.items():
        squares = torch.linalg.svdvals(weights[name] - base[name]).square()
        assert layer.energy_kept == pytest.approx(float(squares[:rank].sum() / squares.sum()), abs=1e-4)
        assert layer.a.shape[0] == layer.b.shape[1] == rank


def test_selection_finds_the_layers_that_changed(folder: Path) -> None:
    names = sorted(linear_weights(unet(folder)))[3::11]
    weights = linear_weights(tuned(folder, names))
    assert sorted(extract(weights, linear_weights(unet(folder)), 4)) == names


def test_large_changes_with_outliers_are_factorised_as_well_as_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(1200, 640, generator=generator) / 100
    change += torch.randn(1200, 6, generator=generator) @ torch.randn(6, 640, generator=generator)
    change[0, 0] = 500.0
    a, b = factorise(change, 16)
    best = torch.linalg.svdvals(change).square()
    kept = 1 - (change - b @ a).square().sum() / change.square().sum()
    assert kept == pytest.approx(float(best[:16].sum() / best.sum()), rel=1e-3)
    again, _ = factorise(change, 16)
    assert torch.equal(a, again)
