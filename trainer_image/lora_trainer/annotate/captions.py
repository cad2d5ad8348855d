"""The captions of a dataset, one for each image, by the job's annotation mode."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from lora_api.job import AnnotationMode, ExistingCaptions, OnCaptionFailure
from lora_api.reasons import Reason
from lora_api.stages import AnnotateConfig
from lora_api.status import SkippedImage, Usage

from ..errors import BadConfigurationError, BadDataError
from ..store import Bucket
from ..whole_words import has_word
from .budget import Budget
from .caption_format import assemble, template
from .captioner import Captioner, Failed
from .existing import CaptionFiles
from .intake import DatasetImage, name_each
from .lint import without_opening
from .providers.factory import make_provider
from .rules import check_words
from .tokens import TEXT_TOKENS, count_tokens, cut_to_tokens

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caption:
    """The caption of one image."""

    text: str
    origin: str
    """`llm`, `existing` or `template`."""
    warnings: list[str]
    more: tuple[str, ...] = ()
    """Further captions, of which each sample takes one or `text`."""


@dataclass(frozen=True)
class Captioned:
    """The outcome of captioning a dataset."""

    captions: dict[str, Caption]
    """Captions by the file name of the clean image, in the images' order."""
    skipped: list[SkippedImage]
    """Images without a caption that the job skips."""
    usage: Usage | None
    """Tokens and cost; None if no language model was asked."""
    warnings: list[str]
    """Warnings about the run as a whole."""
    repeats: dict[str, int] = field(default_factory=dict)
    """How often an image is trained on in an epoch, by its file name, where the dataset says so."""


def caption_images(
    config: AnnotateConfig,
    images: Sequence[DatasetImage],
    existing: CaptionFiles,
    bucket: Bucket,
    on_done: Callable[[int, int], None],
) -> Captioned:
    """Caption every image that is not skipped.

    Args:
        existing: captions that came with the images.
        bucket: the bucket that keeps paid captions.
        on_done: called with the number of captions that are done, and their total.

    Raises:
        BadDataError: CaptionRefused or DatasetInvalid, with each image without a caption, when the job does
            not skip them.
        StageError: an error of the provider or the store.
    """
    annotation, total = config.spec.annotation, len(images)
    outcomes: dict[str, Caption | Failed] = {}
    keep = annotation.existing_captions is ExistingCaptions.KEEP or annotation.mode is AnnotationMode.EXISTING
    for image in images if keep else ():
        if text := existing.captions.get(image.source.key):
            outcomes[image.file_name] = _existing(text, existing.more.get(image.source.key, ()), config)
    on_done(len(outcomes), total)

    uncaptioned = [image for image in images if image.file_name not in outcomes]
    usage, warnings = None, list[str]()
    if annotation.mode is AnnotationMode.EXISTING:
        outcomes |= {
            image.file_name: Failed(existing.problems.get(image.source.key, "it has no caption file"))
            for image in uncaptioned
        }
    elif annotation.mode is AnnotationMode.TEMPLATE:
        outcomes |= {
            image.file_name: Caption(template(config.spec.concept), "template", []) for image in uncaptioned
        }
    elif uncaptioned:
        kept = len(outcomes)
        written, budget = _ask_model(config, uncaptioned, bucket, lambda done: on_done(kept + done, total))
        outcomes |= written
        usage, warnings = budget.usage, budget.warnings
    captioned = _apply_failure_policy(config, images, outcomes, usage, warnings)
    on_done(total, total)
    repeats = {image.file_name: existing.repeats.get(image.source.key) for image in images}
    return replace(captioned, repeats={name: number for name, number in repeats.items() if number})


def _existing(text: str, more: Sequence[str], config: AnnotateConfig) -> Caption:
    """Return the captions that came with an image, cut to the tokens that CLIP reads.

    They are used even if they break the rules for replies of language models, but with a warning.

    Args:
        more: further captions of the image.
    """
    first, *others = (_checked(each, config) for each in (text, *more))
    warnings = [*first.warnings, *(warning for other in others for warning in other.warnings)]
    return replace(first, warnings=list(dict.fromkeys(warnings)), more=tuple(other.text for other in others))


def _checked(text: str, config: AnnotateConfig) -> Caption:
    concept = config.spec.concept
    words = check_words(without_opening(text, concept.token, concept.class_name))
    warnings = [f"its caption: {message}" for _, message in words]
    if not has_word(text, concept.token):
        warnings.append(f"its caption does not name {config.spec.concept.token}")
    if count_tokens(text) > TEXT_TOKENS:
        text = cut_to_tokens(text)
        warnings.append(f"its caption was cut to {TEXT_TOKENS} CLIP tokens")
    return Caption(text, "existing", warnings)


def _ask_model(
    config: AnnotateConfig, images: Sequence[DatasetImage], bucket: Bucket, on_done: Callable[[int], None]
) -> tuple[dict[str, Caption | Failed], Budget]:
    """Request captions for images; also returns the budget with what they cost."""
    access = config.llm
    if access is None:
        raise BadConfigurationError("annotation.mode is LLM, but the stage file has no llm section")

    async def run() -> tuple[list[dict[str, str] | Failed], Budget]:
        provider = make_provider(access)
        with stopped_by_signal() as stop:
            try:
                captioner = Captioner(config, access, provider, bucket, stop)
                return await captioner.caption(images, on_done), captioner.budget
            finally:
                await provider.close()

    results, budget = asyncio.run(run())
    concept = config.spec.concept
    outcomes: dict[str, Caption | Failed] = {
        image.file_name: result
        if isinstance(result, Failed)
        else Caption(assemble(result, concept), "llm", [])
        for image, result in zip(images, results, strict=True)
    }
    return outcomes, budget


@contextmanager
def stopped_by_signal() -> Iterator[asyncio.Event]:
    """Yield an event that SIGTERM and SIGINT set.

    The captioner then finishes and stores the requests in flight and sends no more. The previous handlers are
    restored at the end.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _apply_failure_policy(
    config: AnnotateConfig,
    images: Sequence[DatasetImage],
    outcomes: dict[str, Caption | Failed],
    usage: Usage | None,
    warnings: list[str],
) -> Captioned:
    """Apply onCaptionFailure to the images that have no caption."""
    captions: dict[str, Caption] = {}
    failed: list[SkippedImage] = []
    for image in images:
        outcome = outcomes[image.file_name]
        if isinstance(outcome, Caption):
            captions[image.file_name] = outcome
        elif config.spec.annotation.on_caption_failure is OnCaptionFailure.TEMPLATE:
            warning = f"no caption, so the template: {outcome.reason}"
            captions[image.file_name] = Caption(template(config.spec.concept), "template", [warning])
        else:
            failed.append(SkippedImage(key=image.source.key, reason=f"no caption: {outcome.reason}"))
    asked = config.spec.annotation.mode is AnnotationMode.LLM
    if asked and all(caption.origin == "template" for caption in captions.values()) and captions:
        # Templates may fill gaps. If all captions are templates, the language model failed as a whole.
        refused = [
            SkippedImage(key=image.source.key, reason=_why(outcomes[image.file_name])) for image in images
        ]
        raise BadDataError(
            f"the language model captioned none of the {len(images)} images: {name_each(refused)}",
            Reason.CAPTION_REFUSED,
        )
    if failed and config.spec.annotation.on_caption_failure is OnCaptionFailure.FAIL:
        raise BadDataError(
            f"{len(failed)} images have no caption (set annotation.onCaptionFailure to Skip or Template to continue): "
            + name_each(failed),
            Reason.CAPTION_REFUSED if asked else Reason.DATASET_INVALID,
        )
    return Captioned(captions, failed, usage, warnings)


def _why(outcome: Caption | Failed) -> str:
    return outcome.reason if isinstance(outcome, Failed) else "template"
