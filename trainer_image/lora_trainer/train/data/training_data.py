"""The encoded images and captions that a job uses for training and for the held-out loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_api.job import Crop, Training
from lora_api.stages import TrainConfig
from lora_api.training import Augmentation

from ...errors import BadDataError
from ...store import Bucket
from ..report import TrainingImage, describe_image
from .class_images import class_prompt, provide_class_images
from .dataset import DatasetImage, read_images
from .encode import Encoders, Latent
from .rng import CLASS, HELD_OUT, INSTANCE
from .streams import SampleStream
from .variants import variants_of


@dataclass(frozen=True)
class TrainingData:
    """The streams of samples of a job, and the images that they come from."""

    streams: list[SampleStream]
    """The stream of the concept and, for prior preservation, that of the class."""
    held_out: SampleStream
    """The held-out images, or the training images if none are held out."""
    shown: list[TrainingImage]
    """All images of the concept, held-out ones included, for the report."""
    images: list[DatasetImage]
    """The images of the concept that are used for training."""

    @property
    def captions(self) -> list[str]:
        return [caption for stream in (*self.streams, self.held_out) for caption in stream.all_captions]


def load_training_data(config: TrainConfig, bucket: Bucket, encoders: Encoders) -> TrainingData:
    """Read, crop and encode a job's images.

    Raises:
        BadDataError: if the captions have changed since their approval, or no image is left for training.
    """
    training = config.spec.training
    images = read_images(bucket, config.keys, config.captions_sha256, use_crops=training.crop != Crop.CENTER)
    keep_shape = training.crop == Crop.BUCKETS
    latents = encoders.encode_images(images, training.resolution, keep_shape)
    shown = [
        describe_image(image, config.keys.image_named(image.name), training.resolution, keep_shape)
        for image in images
    ]
    captions = [image.caption for image in images]
    more_captions = [image.more_captions for image in images]
    kept = len(images) - training.validation.held_out_images
    if kept < 1:
        raise BadDataError(
            f"training.validation.heldOutImages is {training.validation.held_out_images} of "
            f"{len(images)} images: leave at least one to train on"
        )
    variants = _variants(training, images[:kept], encoders, keep_shape)
    # An image with repeats is listed several times, so that each epoch has it as often.
    repeated = [index for index, image in enumerate(images[:kept]) for _ in range(image.repeats)]
    streams = [
        SampleStream(
            INSTANCE,
            [latents[index] for index in repeated],
            [captions[index] for index in repeated],
            variants=[variants[index] for index in repeated] if variants else (),
            more_captions=[more_captions[index] for index in repeated] if any(more_captions) else (),
        )
    ]
    held_out = SampleStream(HELD_OUT, latents[kept:] or latents, captions[kept:] or captions)
    if training.prior_preservation.enabled:
        prompt = class_prompt(training, config.spec.concept)
        prior = provide_class_images(bucket, config.namespace, prompt, training, encoders)
        weight = float(training.prior_preservation.weight)
        prior_latents = encoders.encode_images(prior, training.resolution)
        streams.append(SampleStream(CLASS, prior_latents, [prompt] * len(prior), weight))
    return TrainingData(streams, held_out, shown, list(images[:kept]))


def _variants(
    training: Training, images: Sequence[DatasetImage], encoders: Encoders, keep_shape: bool
) -> list[list[Latent]]:
    """Encode all variants of each image; empty where images have no variants."""
    if training.augmentation == Augmentation():
        return []
    chosen = [variants_of(training, image.sha256) for image in images]
    pairs = [(image, variant) for image, variants in zip(images, chosen, strict=True) for variant in variants]
    latents = iter(encoders.encode_variants(pairs, keep_shape))
    return [[next(latents) for _ in variants] for variants in chosen]
