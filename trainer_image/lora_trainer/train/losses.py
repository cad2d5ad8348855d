"""Errors of predictions, and their weights by timestep."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_api.job import HuberSchedule, Loss, LossType, LossWeighting, Training

MAX_SNR = 1000.0
"""SNR above which debiased weights stay the same, as in kohya's scripts. Without noise, 1 / sqrt(SNR) would be 0."""
MIN_SNR = 1 / MAX_SNR
"""SNR below which debiased weights stay the same. At the last timestep of a zero-terminal-SNR schedule, 1 / sqrt(SNR)
would be infinite. SDXL's own schedule ends at an SNR of 0.0047."""


def elementwise_errors(predicted: Tensor, target: Tensor, loss: Loss, alphas_cumprod: Tensor) -> Tensor:
    """Compute the error of each element: float32, (n, channels, height, width).

    The pseudo-Huber error is 2 c (sqrt(d^2 + c^2) - c) as in diffusers' scripts: d^2 for small differences d,
    2 c |d| for large ones.

    Args:
        predicted, target: float32, (n, channels, height, width).
        alphas_cumprod: the noise scheduler's cumulative product at each sample's timestep: float32, (n,).
    """
    difference = predicted - target
    if loss.type == LossType.L2:
        return difference.square()
    c = torch.full_like(alphas_cumprod, float(loss.huber_c))
    if loss.huber_schedule == HuberSchedule.SNR:
        sigma = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
        c = (1 - c) / (1 + sigma) ** 2 + c
    c = c[:, None, None, None]
    return 2 * c * ((difference.square() + c.square()).sqrt() - c)


def mean_errors(errors: Tensor, mask: Tensor | None) -> Tensor:
    """Average the errors of each sample, weighted by its mask: float32, (n,).

    The weighted sum is divided by the sum of the weights, so that a sample's loss does not depend on
    the size of its subject.

    Args:
        errors: float32, (n, channels, height, width).
        mask: weights: float32, (n, 1, height, width); None gives all elements the same weight.
    """
    if mask is None:
        return errors.mean(dim=(1, 2, 3))
    weights = mask.expand_as(errors)
    return (errors * weights).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3)).clamp(min=1e-6)


def timestep_weights(alphas_cumprod: Tensor, training: Training, velocity: bool) -> Tensor:
    """Compute the weight of each sample's timestep: float32, (n,).

    Args:
        alphas_cumprod: as in `elementwise_errors`.
        velocity: whether the model predicts the velocity v instead of the noise.
    """
    if training.loss.weighting == LossWeighting.DEBIASED:
        return debiased_weights(alphas_cumprod, velocity)
    return min_snr_weights(alphas_cumprod, float(training.snr_gamma), velocity)


def debiased_weights(alphas_cumprod: Tensor, velocity: bool) -> Tensor:
    """Compute debiased weights (arXiv:2310.08442): 1 / sqrt(SNR) for noise, 1 / (SNR + 1) for velocity."""
    snr = (alphas_cumprod / (1 - alphas_cumprod)).clamp(max=MAX_SNR)
    return 1 / (snr + 1) if velocity else snr.clamp(min=MIN_SNR).rsqrt()


def min_snr_weights(alphas_cumprod: Tensor, gamma: float, velocity: bool) -> Tensor:
    """Compute Min-SNR-gamma weights (Hang et al. 2023, arXiv:2303.09556).

    The error in x0 has the weight min(SNR, gamma). For the error in the noise it is divided by SNR, and for the error
    in the velocity by SNR + 1. At the last timestep of a zero-terminal-SNR schedule (SNR 0), the weight of the noise
    is its limit, 1. With gamma 0, every timestep has the weight 1.
    """
    if not gamma:
        return torch.ones_like(alphas_cumprod)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / (snr + 1) if velocity else (gamma / snr).clamp(max=1)
