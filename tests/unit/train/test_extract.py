"""Extraction, against the SVD and planted changes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from lora_api.job import Extraction
from lora_trainer.train.export.adapter_file import verify, write_diffusers, write_kohya
from lora_trainer.train.model.adapter import UNET
from lora_trainer.train.model.extract import extract, factorise, put_adapter, tuned_weights
from tests.unit.train.conftest import SMALL_UNET


def small_unet() -> UNet2DConditionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SMALL_UNET().eval()


@torch.no_grad()
def predict(model: UNet2DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(1, 4, 8, 8, generator=generator)
    text = torch.randn(1, 7, 48, generator=generator)
    return model(latent, torch.tensor([500]), text).sample


def tuned(names: list[str] | None = None, convolutions: bool = False) -> UNet2DConditionModel:
    """A UNet some of whose layers were changed."""
    model = small_unet()
    generator = torch.Generator().manual_seed(0)
    for name, weight in tuned_weights(model, convolutions).items():
        if names is None or name in names:
            weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    return model


def error(found: UNet2DConditionModel, expected: UNet2DConditionModel) -> float:
    return float((predict(found) - predict(expected)).norm() / predict(expected).norm())


def extracted(fine: UNet2DConditionModel, rank: int, alpha: int, **settings: Any) -> UNet2DConditionModel:
    base, settings = small_unet(), Extraction.model_validate(settings)
    weights = (tuned_weights(unet, settings.convolutions) for unet in (fine, base))
    put_adapter(base, extract(*weights, rank, settings), rank, alpha)
    return base


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("alpha", [512, 64])
def test_every_layer_at_full_rank_is_the_fine_tuned_model(alpha: int, convolutions: bool) -> None:
    fine = tuned(convolutions=convolutions)
    assert error(small_unet(), fine) > 0.05
    assert error(extracted(fine, 512, alpha, convolutions=convolutions, layerEnergy="1"), fine) < 1e-3
    if convolutions:
        assert error(extracted(fine, 512, alpha, layerEnergy="1"), fine) > 0.05


def test_what_selection_leaves_out_is_little() -> None:
    fine = tuned()
    assert error(extracted(fine, 512, 512), fine) < 0.03 * error(small_unet(), fine)


@torch.no_grad()
def test_a_rank_is_the_least_that_holds_the_energy() -> None:
    fine, base = tuned(convolutions=True), small_unet()
    weights, before = tuned_weights(fine, True), tuned_weights(base, True)
    factors = extract(weights, before, 12, Extraction.model_validate({"rankEnergy": "0.6"}))
    ranks = set()
    for name, layer in factors.items():
        squares = torch.linalg.svdvals((weights[name] - before[name]).flatten(1)).square()
        shares = squares.cumsum(0) / squares.sum()
        least = next((index + 1 for index, share in enumerate(shares) if share >= 0.6), 12)
        assert layer.rank == min(least, 12)
        assert layer.energy_kept == pytest.approx(float(shares[layer.rank - 1]), abs=1e-4)
        ranks.add(layer.rank)
    assert len(ranks) > 2


@pytest.mark.parametrize("energy", ["1", "0.6"])
def test_both_files_of_an_extraction_are_read_back(tmp_path: Path, energy: str) -> None:
    fine = tuned(convolutions=True)
    modules = {UNET: extracted(fine, 12, 6, convolutions=True, rankEnergy=energy)}
    for name, write in (("adapter", write_diffusers), ("adapter-kohya", partial(write_kohya, metadata={}))):
        path = tmp_path / f"{name}.safetensors"
        write(path, modules)
        verify(path, modules)


@torch.no_grad()
def test_energy_kept_is_the_svds() -> None:
    rank = 5
    weights, base = tuned_weights(tuned(), False), tuned_weights(small_unet(), False)
    for name, layer in extract(weights, base, rank, Extraction()).items():
        squares = torch.linalg.svdvals(weights[name] - base[name]).square()
        assert layer.energy_kept == pytest.approx(float(squares[:rank].sum() / squares.sum()), abs=1e-4)
        assert layer.a.shape[0] == layer.b.shape[1] == rank


def test_selection_finds_the_layers_that_changed() -> None:
    base = tuned_weights(small_unet(), True)
    names = sorted(base)[3::11]
    weights = tuned_weights(tuned(names, convolutions=True), True)
    assert sorted(extract(weights, base, 4, Extraction())) == names


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
