"""Chance, by number: what is random in the n-th sample depends on the seed and on n alone.

So a resumed run needs no replay, and a batch that is split over accumulation steps or processes draws
what one process would have drawn. Everything is drawn on the CPU, in float32, whatever trains.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

INSTANCE, CLASS, HELD_OUT = "instance", "class", "held-out"
"""The streams of samples: the customer's pictures, those for prior preservation, and what is only measured on."""


@dataclass(frozen=True)
class Draw:
    """All that chance decides in one sample, but for which picture it shows."""

    timestep: int
    posterior: Tensor
    """Standard normal, the latent's shape: which point of the VAE's posterior is trained on."""
    noise: Tensor
    """Standard normal, the latent's shape."""
    offset: Tensor
    """Standard normal, (channels, 1, 1), for noise offset."""
    dropout: float
    """Uniform from 0 to 1: below captionDropout, the caption is left out."""


def generator_for(seed: int, *path: object) -> Generator:
    """A generator for one purpose, independent of every other purpose's."""
    digest = hashlib.sha256("/".join(map(str, (seed, *path))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def picture_of(seed: int, stream: str, sample: int, pictures: int) -> int:
    """Which picture the n-th sample shows: every picture once an epoch, in an order of that epoch's own."""
    epoch, place = divmod(sample, pictures)
    order = torch.randperm(pictures, generator=generator_for(seed, stream, "order", epoch))
    return int(order[place])


def draw(seed: int, stream: str, sample: int, shape: tuple[int, ...], timesteps: int) -> Draw:
    """The draws of one sample.

    Args:
        sample: counts the samples of a stream from 0, over all steps and processes.
        shape: of the latent, (channels, height, width).
        timesteps: of the noise schedule; drawn uniformly from 0 to one below it.
    """
    generator = generator_for(seed, stream, "sample", sample)
    timestep = int(torch.randint(timesteps, (), generator=generator))
    posterior = torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    offset = torch.randn((shape[0], 1, 1), generator=generator)
    dropout = float(torch.rand((), generator=generator))
    return Draw(timestep, posterior, noise, offset, dropout)
