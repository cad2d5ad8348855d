"""What is minimised: SDXL's denoising error with Min-SNR weighting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Samples of one latent shape, on the training device."""

    latents: Tensor
    """float32, (n, channels, height, width)."""
    noise: Tensor
    timesteps: Tensor
    """int64, (n,)."""
    text: Tensor
    """(n, 77, width)."""
    pooled: Tensor
    """(n, width)."""
    time_ids: Tensor
    """(n, 6)."""
    weights: Tensor
    """float32, (n,): each sample's share of the objective."""


def sample_losses(
    unet: UNet2DConditionModel, schedule: DDPMScheduler, batch: Batch, snr_gamma: float
) -> Tensor:
    """Each sample's weighted loss: float32, (n,)."""
    predicted = predict(unet, schedule, batch)
    velocity = schedule.config.prediction_type == "v_prediction"
    wanted = schedule.get_velocity(batch.latents, batch.noise, batch.timesteps) if velocity else batch.noise
    errors: Tensor = (predicted - wanted).square().mean(dim=(1, 2, 3))
    alphas = schedule.alphas_cumprod.to(batch.timesteps.device)[batch.timesteps]
    return errors * batch.weights * min_snr_weights(alphas, snr_gamma, velocity)


def predict(unet: UNet2DConditionModel, schedule: DDPMScheduler, batch: Batch) -> Tensor:
    """The UNet's prediction for noised latents: float32, (n, channels, height, width)."""
    noisy = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    dtype = next(unet.parameters()).dtype  # what unet.dtype finds after a look at all layers, in 2% of a step
    predicted: Tensor = unet(
        noisy.to(dtype),
        batch.timesteps,
        batch.text.to(dtype),
        added_cond_kwargs={"text_embeds": batch.pooled.to(dtype), "time_ids": batch.time_ids},
        return_dict=False,
    )[0]
    return predicted.float()


def min_snr_weights(alphas_cumprod: Tensor, gamma: float, velocity: bool) -> Tensor:
    """Min-SNR-gamma (Hang et al. 2023, arXiv:2303.09556): the weight min(SNR, gamma) of the error in x0.

    Carried over to the error in the noise it is divided by SNR, and to the error in the velocity by
    SNR + 1. Gamma 0 weighs every timestep alike.

    Args:
        alphas_cumprod: the schedule's cumulative product at each sample's timestep, (n,).
        velocity: the model predicts v rather than the noise.
    """
    if not gamma:
        return torch.ones_like(alphas_cumprod)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / (snr + 1 if velocity else snr)
