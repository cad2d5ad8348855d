"""Errors, weights, timesteps and rank dropout against their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from lora_api.job import Adapter, Loss, Timesteps, Training
from lora_trainer.train.data.rng import sample_timestep
from lora_trainer.train.losses import debiased_weights, elementwise_errors, mean_errors, timestep_weights
from lora_trainer.train.model.adapter import UNET, adapter_layers, add_adapter
from lora_trainer.train.model.tiny import sdxl_scheduler
from lora_trainer.train.objective import Batch
from lora_trainer.train.overrides.fused import fuse
from lora_trainer.train.rank_dropout import RankDropout
from tests.unit.train.conftest import SMALL_UNET

ALPHAS = DDPMScheduler.from_config(sdxl_scheduler().config).alphas_cumprod


def test_pseudo_huber_is_square_below_its_threshold_and_linear_above() -> None:
    loss = Loss.model_validate({"type": "Huber", "huberC": "0.5", "huberSchedule": "Constant"})
    alphas = torch.tensor([0.5])
    small = torch.full((1, 1, 1, 1), 1e-2)
    torch.testing.assert_close(
        elementwise_errors(small, 0 * small, loss, alphas), small.square(), rtol=1e-3, atol=0
    )
    large = torch.full((1, 1, 1, 1), 100.0)
    expected = 2 * 0.5 * (100 - 0.5)
    assert float(elementwise_errors(large, 0 * large, loss, alphas)) == pytest.approx(expected, rel=1e-4)


def test_the_huber_threshold_falls_with_the_noise() -> None:
    # Khrapov et al. 2024, as diffusers' scripts write it.
    loss = Loss.model_validate({"type": "Huber", "huberC": "0.1"})
    for step in (0, 400, 999):
        alpha = ALPHAS[step]
        sigma = ((1 - alpha) / alpha) ** 0.5
        c = (1 - 0.1) / (1 + sigma) ** 2 + 0.1
        difference = torch.linspace(-3, 3, 7).reshape(1, 1, 1, 7)
        expected = 2 * c * ((difference**2 + c**2) ** 0.5 - c)
        errors = elementwise_errors(difference, torch.zeros_like(difference), loss, alpha[None])
        torch.testing.assert_close(errors, expected)


def test_debiased_weights_even_out_the_error_in_the_image() -> None:
    snr = ALPHAS / (1 - ALPHAS)
    expected = 1 / snr.clamp(max=1000).sqrt()
    torch.testing.assert_close(debiased_weights(ALPHAS, velocity=False), expected)
    torch.testing.assert_close(debiased_weights(ALPHAS, velocity=True)[500:], 1 / (snr[500:] + 1))
    training = Training.model_validate({"loss": {"weighting": "Debiased"}})
    torch.testing.assert_close(timestep_weights(ALPHAS, training, velocity=False), expected)


@pytest.mark.parametrize("velocity", [False, True])
def test_debiased_weights_are_finite_at_zero_terminal_snr(velocity: bool) -> None:
    assert debiased_weights(torch.zeros(1), velocity).isfinite().all()


def test_a_mask_weighs_elements_whatever_its_size() -> None:
    errors = torch.zeros(2, 4, 8, 8)
    errors[:, :, :4] = 1.0
    mask = torch.full((2, 1, 8, 8), 0.1)
    mask[0, :, :4] = 1.0
    mask[1, :, 4:] = 1.0
    expected = torch.tensor([1 / 1.1, 0.1 / 1.1])
    torch.testing.assert_close(mean_errors(errors, mask), expected)
    torch.testing.assert_close(mean_errors(errors, None), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(mean_errors(errors, torch.ones(2, 1, 8, 8)), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(
    ("settings", "low", "high", "median"),
    [
        ({"min": "0.2", "max": "0.6"}, 200, 599, 400),
        ({"distribution": "LogitNormal"}, 0, 999, 500),
        ({"distribution": "LogitNormal", "mean": "1", "std": "0.5"}, 0, 999, 731),
        ({"min": "0.9999", "max": "1"}, 999, 999, 999),
        ({"min": "0", "max": "0.0001"}, 0, 0, 0),
    ],
)
def test_timesteps_follow_their_distribution(
    settings: dict[str, str], low: int, high: int, median: int
) -> None:
    chosen = Timesteps.model_validate(settings)
    drawn = [sample_timestep(0, "instance", sample, 1000, chosen) for sample in range(2000)]
    assert low <= min(drawn)
    assert max(drawn) <= high
    assert sorted(drawn)[1000] == pytest.approx(median, abs=25)
    assert drawn[7] == sample_timestep(0, "instance", 7, 1000, chosen)


def batch_of(samples: list[int]) -> Batch:
    count = len(samples)
    generator = torch.Generator().manual_seed(samples[0])
    return Batch(
        latents=torch.randn(count, 4, 8, 8, generator=generator),
        noise=torch.zeros(count, 4, 8, 8),
        timesteps=torch.full((count,), 5),
        text=torch.ones(count, 7, 48),
        pooled=torch.zeros(count, 1),
        time_ids=torch.zeros(count, 6),
        weights=torch.ones(count),
        samples=tuple(("instance", sample) for sample in samples),
    )


def dropped_unet(probability: float, **kind: Any) -> tuple[Any, RankDropout]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = SMALL_UNET()
        add_adapter(unet, UNET, 4, 4, 0, kind=Adapter.model_validate(kind))
        for _, layer in adapter_layers(unet):
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.2)
    dropout = RankDropout(unet, probability, seed=3)
    fuse(unet)
    return unet, dropout


@pytest.mark.parametrize("targets", ["Attention", "Full"])
@torch.no_grad()
def test_rank_dropout_masks_each_sample_by_its_number(targets: str) -> None:
    unet, dropout = dropped_unet(0.5, targets=targets)
    together, alone = batch_of([1, 2]), batch_of([2])
    latents = together.latents[1:]

    def predict(batch: Batch, x: torch.Tensor) -> torch.Tensor:
        return unet(x, batch.timesteps, batch.text).sample

    plain = predict(alone, latents)
    with dropout.applied(together):
        both = predict(together, together.latents)
    with dropout.applied(alone):
        single = predict(alone, latents)
    torch.testing.assert_close(both[1:], single, rtol=1e-4, atol=1e-5)
    assert (single - plain).abs().max() > 1e-3
    torch.testing.assert_close(predict(alone, latents), plain)  # no effect outside of training


@torch.no_grad()
def test_dropped_ranks_leave_the_expected_change() -> None:
    unet, dropout = dropped_unet(0.25)
    _, layer = next(iter(adapter_layers(unet)))
    x = torch.randn(1, 3, layer.in_features, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(())
    for sample in range(2000):
        with dropout.applied(batch_of([sample])):
            mask = dropout.mask(0)
            assert mask is not None
            assert ((mask == 0) | torch.isclose(mask, torch.tensor(1 / 0.75))).all()
            total = total + layer(x)
    torch.testing.assert_close(total / 2000, layer(x), rtol=0.05, atol=0.05)
