"""Counter-based random values: those of the n-th sample of a stream depend only on the seed, the stream and n.

So a resumed run does not have to repeat earlier draws, and a batch has the same values however it is split over
accumulation steps or processes. All values are generated on the CPU, in float32, whatever the training device.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lora_api.job import TimestepDistribution, Timesteps

INSTANCE, CLASS, HELD_OUT = "instance", "class", "held-out"
"""Names of the streams of samples: images of the concept, of the class (prior preservation), and held-out images."""


@dataclass(frozen=True)
class SampleRng:
    """The random values of one sample."""

    timestep: int
    """Uniform timestep, from 0; see `sample_timestep` for other distributions."""
    posterior: Tensor
    """Standard normal, float32, the latent's shape: selects the sample of the VAE's posterior (`Latent.sample`)."""
    noise: Tensor
    """Standard normal, float32, the latent's shape: the noise that is added to the latent."""
    offset: Tensor
    """Standard normal, float32, (channels, 1, 1): the noise offset before scaling."""
    dropout: float
    """Uniform, from 0 to 1. The caption is dropped if it is below captionDropout."""


def sample_timestep(seed: int, stream: str, sample: int, timesteps: int, settings: Timesteps) -> int:
    """Draw a sample's timestep from the distribution in the settings.

    Timesteps are from floor(min T) up to, but not including, ceil(max T), where T is the number of timesteps. The
    range has at least one timestep.
    """
    generator = generator_for(seed, stream, "timestep", sample)
    if settings.distribution == TimestepDistribution.LOGIT_NORMAL:
        normal = torch.randn((), generator=generator)
        place = float(torch.sigmoid(float(settings.mean) + float(settings.std) * normal))
    else:
        place = float(torch.rand((), generator=generator))
    low = min(int(float(settings.min) * timesteps), timesteps - 1)
    high = max(math.ceil(float(settings.max) * timesteps), low + 1)
    return min(low + int(place * (high - low)), high - 1)


def generator_for(seed: int, *path: object) -> Generator:
    """Create a generator that is independent of the generators of all other paths.

    Args:
        path: the purpose of the values, such as the stream, a name and the number of the sample.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *path))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def choose(seed: int, stream: str, purpose: str, sample: int, count: int) -> int:
    """Choose the index of one of `count` alternatives for a sample."""
    if count == 1:
        return 0
    return int(torch.randint(count, (), generator=generator_for(seed, stream, purpose, sample)))


def image_index(seed: int, stream: str, sample: int, images: int) -> int:
    """Choose the index of a sample's image. Each epoch has every image once, in a new random order."""
    epoch, place = divmod(sample, images)
    order = torch.randperm(images, generator=generator_for(seed, stream, "order", epoch))
    return int(order[place])


def sample_rng(seed: int, stream: str, sample: int, shape: tuple[int, ...], timesteps: int) -> SampleRng:
    """Generate the random values of one sample.

    Args:
        sample: number of the sample in its stream, from 0, over all steps and processes.
        shape: shape of the latent, (channels, height, width).
        timesteps: number of timesteps of the noise schedule.
    """
    generator = generator_for(seed, stream, "sample", sample)
    timestep = int(torch.randint(timesteps, (), generator=generator))
    posterior = torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    offset = torch.randn((shape[0], 1, 1), generator=generator)
    dropout = float(torch.rand((), generator=generator))
    return SampleRng(timestep, posterior, noise, offset, dropout)
