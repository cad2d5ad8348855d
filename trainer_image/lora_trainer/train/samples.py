"""What a job trains on and what it measures on, encoded."""

from __future__ import annotations

from dataclasses import dataclass

from lora_api.job import Crop
from lora_api.steps import TrainStep

from ..errors import BadDataError
from ..store import Bucket
from .class_pictures import class_prompt, provide_class_pictures
from .dataset import read_pictures
from .draws import CLASS, HELD_OUT, INSTANCE
from .encode import Encoders
from .loop import Source
from .report import Shown, show


@dataclass(frozen=True)
class Samples:
    """A job's streams of samples."""

    sources: list[Source]
    """The customer's pictures and, for prior preservation, the class's."""
    held_out: Source
    shown: list[Shown]
    """The customer's pictures, for the report."""

    @property
    def captions(self) -> list[str]:
        return [caption for source in (*self.sources, self.held_out) for caption in source.captions]


def gather(config: TrainStep, bucket: Bucket, encoders: Encoders) -> Samples:
    """Read, cut and encode a job's pictures.

    Raises:
        BadDataError: when they are not those that were approved, or none is left to train on.
    """
    training = config.spec.training
    pictures = read_pictures(
        bucket, config.keys, config.captions_sha256, use_crops=training.crop != Crop.CENTER
    )
    keep_shape = training.crop == Crop.BUCKETS
    latents = encoders.pictures(pictures, training.resolution, keep_shape)
    shown = [
        show(picture, config.keys.image_named(picture.name), training.resolution, keep_shape)
        for picture in pictures
    ]
    captions = [picture.caption for picture in pictures]
    kept = len(pictures) - training.validation.held_out_images
    if kept < 1:
        raise BadDataError(
            f"training.validation.heldOutImages is {training.validation.held_out_images} of "
            f"{len(pictures)} images: leave at least one to train on"
        )
    sources = [Source(INSTANCE, latents[:kept], captions[:kept])]
    held_out = Source(HELD_OUT, latents[kept:] or latents, captions[kept:] or captions)
    if training.prior_preservation.enabled:
        prompt = class_prompt(training, config.spec.concept)
        prior = provide_class_pictures(bucket, config.namespace, prompt, training, encoders)
        weight = float(training.prior_preservation.weight)
        prior_latents = encoders.pictures(prior, training.resolution)
        sources.append(Source(CLASS, prior_latents, [prompt] * len(prior), weight))
    return Samples(sources, held_out, shown)
