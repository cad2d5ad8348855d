"""The assessment of a training: findings from its records, previews and captions, and the fields to change.

Every check is a pure function of the report's data, and has no findings if its data is missing. The thresholds are
rules of thumb for 5 to 20 images. The texts have the measured figures, so that readers can judge for themselves.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

import numpy as np
from PIL import Image, UnidentifiedImageError

from lora_api.job import Training

from ..finite import TEXT_EMBEDDING
from ..records import Record, mean_loss
from .report_data import ReportData

MIN_IMAGES = 5
"""Number of images below which the dataset is too small."""
MIN_STEPS_PER_IMAGE = 10
"""Number of times that each image should be seen at least."""
MIN_CHANGE = 0.02
"""Mean absolute difference of pixels, from 0 to 1, below which a preview looks like the base preview."""
MAX_DRIFT = 1 / 3
"""Ratio of the change without the token to the change with it, above which the class has changed too."""
DIVERGENCE = 1.5
"""Ratio of the loss at the end to that at the beginning, above which the training diverged."""
OVERFITTING = 1.03
"""Ratio of the last held-out loss to the lowest, above which the training was too long."""


class Level(StrEnum):
    """Severity of a finding, from the best to the worst."""

    GOOD = "good"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One statement about the training."""

    level: Level
    title: str
    text: str
    field: str = ""
    """Field of the job to change; empty if there is none."""


@dataclass(frozen=True)
class Assessment:
    """A verdict in one or two sentences, and the findings behind it, problems first."""

    level: Level
    verdict: str
    findings: list[Finding]


def assess(data: ReportData) -> Assessment:
    """Assess a training from its report's data."""
    findings = [
        *_check_losses(data.records, data.config.spec.training),
        *_check_held_out(data.records),
        *_check_previews(data),
        *_check_amount(data),
        *_check_captions(data),
    ]
    problems = [finding for finding in findings if finding.level == Level.PROBLEM]
    order = list(reversed(Level))  # problems, notes, good findings
    ordered = sorted(findings, key=lambda finding: order.index(finding.level))
    if problems:
        return Assessment(Level.PROBLEM, f"{problems[0].title}.", ordered)
    if any(finding.level == Level.GOOD for finding in findings):
        return Assessment(
            Level.GOOD, "The adapter changes what the model generates. No problems found.", ordered
        )
    return Assessment(Level.NOTE, "No problems found. Judge the result by the previews.", ordered)


def _check_losses(records: Sequence[Record], training: Training) -> Iterator[Finding]:
    """Find losses that are not finite, and a loss that grew."""
    not_finite = [record for record in records if record.loss is None]
    if not_finite:
        place = not_finite[0].not_finite or "the loss"
        rate, field = "the learning rate", "training.learningRate"
        if place.startswith(TEXT_EMBEDDING) and training.token_embeddings.train:
            rate, field = "the learning rate of the embeddings", "training.tokenEmbeddings.learningRate"
        elif place.startswith(TEXT_EMBEDDING):
            rate, field = "the learning rate of the text encoders", "training.textEncoder.learningRate"
        yield Finding(
            Level.PROBLEM,
            "The loss was not finite in some steps",
            f"{len(not_finite)} of {len(records)} steps had a loss that is infinite or not a number, and were skipped. In "
            f"step {not_finite[0].step}, {place} was not finite. Lower {rate}.",
            field,
        )
    tenth = max(1, len(records) // 10)
    first, last = mean_loss(records[:tenth]), mean_loss(records[-tenth:])
    if first and last and len(records) >= 20 and last > DIVERGENCE * first:
        yield Finding(
            Level.PROBLEM,
            "The training diverged",
            f"The mean loss grew from {first:.3f} in the first tenth to {last:.3f} in the last tenth of the steps. "
            "Divide the learning rate by 3.",
            "training.learningRate",
        )


def _check_held_out(records: Sequence[Record]) -> Iterator[Finding]:
    """Compare the last held-out loss with the lowest."""
    measured = [(r.step, r.held_out_loss) for r in records if r.held_out_loss is not None]
    if len(measured) < 3:
        return
    step, lowest = min(measured, key=lambda item: item[1])
    last_step, last = measured[-1]
    if step < last_step and last > OVERFITTING * lowest:
        yield Finding(
            Level.PROBLEM,
            "The training overfitted",
            f"The loss on held-out images was lowest at step {step} ({lowest:.4f}) and rose to {last:.4f}. Train for "
            f"about {step} steps, or publish the best step with validation.publish: LowestHeldOutLoss.",
            "training.maxSteps",
        )
    elif last < measured[0][1]:
        yield Finding(
            Level.GOOD,
            "It learned",
            f"The loss on held-out images fell from {measured[0][1]:.4f} to {last:.4f}.",
        )


def _check_previews(data: ReportData) -> Iterator[Finding]:
    """Compare the last preview of each prompt with the base preview, which has the same noise."""
    token_pattern = re.compile(rf"(?<!\w){re.escape(data.config.spec.concept.token)}(?!\w)", re.IGNORECASE)
    with_token: list[float] = []
    without: list[float] = []
    last = {preview.prompt: preview.key for preview in data.manifest.previews}
    for prompt, key in last.items():
        change = _difference(data, data.base_previews.get(prompt), key)
        if change is not None:
            (with_token if token_pattern.search(prompt) else without).append(change)
    if with_token and fmean(with_token) < MIN_CHANGE:
        yield Finding(
            Level.PROBLEM,
            "The adapter has almost no effect",
            f"With the token, previews differ from the base model's by {fmean(with_token):.1%} on average. "
            "Train for more steps, or raise the learning rate.",
            "training.maxSteps",
        )
    elif with_token:
        yield Finding(
            Level.GOOD,
            "The token has an effect",
            f"With the token, previews differ from the base model's by {fmean(with_token):.1%} on average.",
        )
    # Prompts without the token should look as with the base model, but a small change is usual.
    if with_token and without and fmean(without) > max(MIN_CHANGE, MAX_DRIFT * fmean(with_token)):
        yield Finding(
            Level.PROBLEM,
            "Prompts without the token changed too",
            f"Previews without the token differ from the base model's by {fmean(without):.1%} on average: the adapter "
            "changed more than the concept. Train for fewer steps, or turn on prior preservation.",
            "training.priorPreservation",
        )


def _check_amount(data: ReportData) -> Iterator[Finding]:
    """Check the number of images and how often each was seen."""
    images, training = len(data.training_images), data.config.spec.training
    if images and images < MIN_IMAGES:
        yield Finding(
            Level.PROBLEM,
            "Too few images",
            f"{images} images were trained on. With fewer than {MIN_IMAGES} the adapter learns backgrounds and poses "
            "along with the concept. Add images that differ.",
            "dataset.prefix",
        )
    samples = (
        training.batch_size
        * training.gradient_accumulation_steps
        * max(1, data.config.spec.resources.train.gpus)
    )
    seen = len(data.records) * samples / images if images else 0
    if images and seen < MIN_STEPS_PER_IMAGE:
        yield Finding(
            Level.PROBLEM,
            "The training is too short",
            f"Each image was seen {seen:.1f} times; 80 to 100 times are usual. Raise the number of steps.",
            "training.maxSteps",
        )
    elif images:
        yield Finding(
            Level.NOTE, "Amount of training", f"Each of {images} images was seen about {seen:.0f} times."
        )


def _check_captions(data: ReportData) -> Iterator[Finding]:
    """Check that the captions contain the token and differ."""
    captions = [image.caption for image in data.training_images]
    token = data.config.spec.concept.token
    token_pattern = re.compile(rf"(?<!\w){re.escape(token)}(?!\w)", re.IGNORECASE)
    without = sum(not token_pattern.search(caption) for caption in captions)
    if without:
        yield Finding(
            Level.PROBLEM,
            "Captions without the token",
            f"{without} of {len(captions)} captions do not contain {token}. The concept is then learned as part of the "
            "class. Correct the captions.",
            "annotation.existingCaptions",
        )
    if len(captions) > 2 and len(set(captions)) == 1:
        yield Finding(
            Level.NOTE,
            "All captions are the same",
            "Captions that describe each image keep background and pose free to change in prompts.",
            "annotation.mode",
        )


def _difference(data: ReportData, base: str | None, adapted: str) -> float | None:
    """Compute the mean absolute difference of two images' pixels, from 0 to 1.

    Args:
        base: key of the base preview.
        adapted: key of the preview.

    Returns:
        None if an image cannot be read or the sizes differ.
    """
    pixels = []
    for key in (base, adapted):
        content = data.fetch(key) if key else None
        if content is None:
            return None
        try:
            pixels.append(np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.float32) / 255)
        except (UnidentifiedImageError, OSError):
            return None
    return float(np.abs(pixels[0] - pixels[1]).mean()) if pixels[0].shape == pixels[1].shape else None
