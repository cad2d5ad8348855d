"""The weights, against the definitions they come from."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler

from lora_trainer.train.objective import min_snr_weights
from lora_trainer.train.tiny import sdxl_scheduler

ALPHAS = DDPMScheduler.from_config(sdxl_scheduler().config).alphas_cumprod
GAMMA = 5.0


def test_min_snr_weighs_the_error_in_the_picture_alike_in_both_forms() -> None:
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


def test_gamma_nought_weighs_all_alike() -> None:
    assert min_snr_weights(ALPHAS, 0.0, velocity=False).eq(1).all()
