"""The training objective: SDXL's denoising error, weighted by timestep and mask."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from lora_api.job import Training

from .losses import elementwise_errors, mean_errors, timestep_weights


@dataclass(frozen=True)
class Batch:
    """Samples of one latent shape, on the training device."""

    latents: Tensor
    """float32, (n, channels, height, width)."""
    noise: Tensor
    """float32, the shape of `latents`."""
    timesteps: Tensor
    """int64, (n,), from 0."""
    text: Tensor
    """(n, 77, width of both encoders), in the text encoders' number format."""
    pooled: Tensor
    """(n, projection width), in the text encoders' number format."""
    time_ids: Tensor
    """float32, (n, 6): see `CroppedImage.time_ids`."""
    weights: Tensor
    """float32, (n,): factor of each sample's loss."""
    mask: Tensor | None = None
    """float32, (n, 1, height, width): weight of the error at each position of the latents; None: 1 everywhere."""
    samples: tuple[tuple[str, int], ...] = ()
    """Stream name and number of each sample, which determine its random values."""


def sample_losses(
    unet: UNet2DConditionModel, noise_scheduler: DDPMScheduler, batch: Batch, training: Training
) -> Tensor:
    """Compute each sample's weighted loss: float32, (n,)."""
    predicted = predict(unet, noise_scheduler, batch)
    velocity = noise_scheduler.config.prediction_type == "v_prediction"
    target = (
        noise_scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps) if velocity else batch.noise
    )
    alphas = noise_scheduler.alphas_cumprod.to(batch.timesteps.device)[batch.timesteps]
    errors = mean_errors(elementwise_errors(predicted, target, training.loss, alphas), batch.mask)
    return errors * batch.weights * timestep_weights(alphas, training, velocity)


def predict(unet: UNet2DConditionModel, noise_scheduler: DDPMScheduler, batch: Batch) -> Tensor:
    """Add noise to the latents and run the UNet.

    Returns:
        The predicted noise or velocity: float32, (n, channels, height, width).
    """
    noisy = noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    dtype = next(unet.parameters()).dtype  # unet.dtype searches all layers, which takes 2% of a step
    predicted: Tensor = unet(
        noisy.to(dtype),
        batch.timesteps,
        batch.text.to(dtype),
        added_cond_kwargs={"text_embeds": batch.pooled.to(dtype), "time_ids": batch.time_ids},
        return_dict=False,
    )[0]
    return predicted.float()
