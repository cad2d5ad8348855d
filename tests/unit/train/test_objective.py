"""The weights, against the definitions they come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from lora_api.job import Training
from lora_trainer.train.losses import min_snr_weights
from lora_trainer.train.model.tiny import sdxl_scheduler, write_tiny_sdxl
from lora_trainer.train.objective import Batch, sample_losses

ALPHAS = DDPMScheduler.from_config(sdxl_scheduler().config).alphas_cumprod
GAMMA = 5.0


def test_min_snr_weighs_the_error_of_the_image_alike_for_noise_and_velocity() -> None:
    # One error in x0, expressed as an error in the noise and in the velocity, must weigh min(SNR, gamma).
    alpha, sigma = ALPHAS.sqrt(), (1 - ALPHAS).sqrt()
    snr = (alpha / sigma) ** 2
    error_in_picture = 0.1
    error_in_noise = alpha / sigma * error_in_picture  # x0 = (x - sigma * noise) / alpha
    error_in_velocity = error_in_picture / sigma  # x0 = alpha * x - sigma * v
    expected = snr.clamp(max=GAMMA) * error_in_picture**2
    for velocity, error in ((False, error_in_noise), (True, error_in_velocity)):
        weighted = min_snr_weights(ALPHAS, GAMMA, velocity) * error**2
        torch.testing.assert_close(weighted, expected, rtol=1e-3, atol=0)


def test_the_weight_of_the_noise_has_its_limit_where_the_signal_is_gone() -> None:
    alphas = torch.tensor([0.0, 1e-12, 0.5])
    assert min_snr_weights(alphas, GAMMA, velocity=False).tolist() == [1, 1, 1]
    assert min_snr_weights(alphas, GAMMA, velocity=True)[0] == 0


def test_gamma_nought_weighs_all_alike() -> None:
    assert min_snr_weights(ALPHAS, 0.0, velocity=False).eq(1).all()


def test_a_step_does_not_look_through_all_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_sdxl(tmp_path)
    unet = UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet", torch_dtype=torch.bfloat16)
    schedule = DDPMScheduler.from_config(sdxl_scheduler().config)
    batch = Batch(
        latents=torch.zeros(1, 4, 8, 8),
        noise=torch.ones(1, 4, 8, 8),
        timesteps=torch.tensor([500]),
        text=torch.zeros(1, 77, 64),
        pooled=torch.zeros(1, 32),
        time_ids=torch.zeros(1, 6),
        weights=torch.ones(1),
    )
    monkeypatch.setattr(UNet2DConditionModel, "dtype", property(lambda _: pytest.fail("looks through all")))
    losses = sample_losses(unet, schedule, batch, Training())
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
