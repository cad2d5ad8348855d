"""Streams of samples: the images of the concept, those of the class, or the held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .encode import Latent
from .rng import choose


@dataclass(frozen=True)
class SampleStream:
    """Encoded images with their captions."""

    name: str
    """Name of the stream, on which its random values depend: see `rng`."""
    latents: Sequence[Latent]
    """The plain latent of each image."""
    captions: Sequence[str]
    """The first caption of each image."""
    weight: float = 1.0
    """Factor of each sample's loss."""
    variants: Sequence[Sequence[Latent]] = ()
    """All variants of each image, including its plain latent. If empty, only `latents` is used."""
    more_captions: Sequence[Sequence[str]] = ()
    """Further captions of each image. If empty, only `captions` is used."""

    def latent_of(self, seed: int, sample: int, index: int) -> Latent:
        """Choose the variant of an image for a sample."""
        if not self.variants:
            return self.latents[index]
        return self.variants[index][choose(seed, self.name, "variant", sample, len(self.variants[index]))]

    def caption_of(self, seed: int, sample: int, index: int) -> str:
        """Choose the caption of an image for a sample."""
        captions = [self.captions[index], *(self.more_captions[index] if self.more_captions else ())]
        return captions[choose(seed, self.name, "caption", sample, len(captions))]

    @property
    def all_captions(self) -> list[str]:
        return [*self.captions, *(caption for more in self.more_captions for caption in more)]
