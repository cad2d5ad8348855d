"""One caption for each picture, by the job's mode."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lora_api.job import AnnotationMode, ExistingCaptions, OnCaptionFailure
from lora_api.reasons import Reason
from lora_api.status import SkippedImage, Usage
from lora_api.steps import AnnotateStep

from ..errors import BadConfigurationError, BadDataError
from ..store import Bucket
from .buy import Buyer, Failed
from .caption import Fields, assemble, template
from .existing import caption_of
from .intake import Picture, name_each
from .providers import make_provider
from .tokens import TEXT_TOKENS, count_tokens, cut_to_tokens

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caption:
    text: str
    origin: str
    """Where it came from: bought, existing or template."""
    warnings: list[str]


@dataclass(frozen=True)
class Captioned:
    captions: dict[str, Caption]
    """By file name, in the pictures' order."""
    skipped: list[SkippedImage]
    usage: Usage | None


def caption_pictures(
    config: AnnotateStep,
    pictures: Sequence[Picture],
    existing: dict[str, str],
    bucket: Bucket,
    on_done: Callable[[int, int], None],
) -> Captioned:
    """A caption for every picture that is not skipped.

    Args:
        existing: captions that came with the images.
        bucket: where bought captions are kept.
        on_done: called with (captions done, captions in all).

    Raises:
        BadDataError: CaptionRefused or DatasetInvalid, naming each picture without a caption, when the job does
            not skip them.
        StepError: whatever the provider or the store raised.
    """
    annotation, total = config.spec.annotation, len(pictures)
    outcomes: dict[str, Caption | Failed] = {}
    keep = annotation.existing_captions is ExistingCaptions.KEEP or annotation.mode is AnnotationMode.EXISTING
    for picture in pictures if keep else ():
        text = caption_of(existing, picture.source.key)
        if text:
            outcomes[picture.file_name] = _existing(text, config)
    on_done(len(outcomes), total)

    wanting = [picture for picture in pictures if picture.file_name not in outcomes]
    usage = None
    if annotation.mode is AnnotationMode.EXISTING:
        outcomes |= {p.file_name: Failed("no caption lies beside it") for p in wanting}
    elif annotation.mode is AnnotationMode.TEMPLATE:
        outcomes |= {p.file_name: Caption(template(config.spec.concept), "template", []) for p in wanting}
    elif wanting:
        kept = len(outcomes)
        bought, usage = _buy(config, wanting, bucket, lambda done: on_done(kept + done, total))
        outcomes |= bought
    captioned = _settle_failures(config, pictures, outcomes, usage)
    on_done(total, total)
    return captioned


def _existing(text: str, config: AnnotateStep) -> Caption:
    warnings = []
    if config.spec.concept.token.lower() not in text.lower():
        warnings.append(f"its caption does not name {config.spec.concept.token}")
    if count_tokens(text) > TEXT_TOKENS:
        text = cut_to_tokens(text)
        warnings.append(f"its caption was cut to {TEXT_TOKENS} CLIP tokens")
    return Caption(text, "existing", warnings)


def _buy(
    config: AnnotateStep, pictures: Sequence[Picture], bucket: Bucket, on_done: Callable[[int], None]
) -> tuple[dict[str, Caption | Failed], Usage]:
    access = config.llm
    if access is None:
        raise BadConfigurationError("annotation.mode is LLM, but the step file has no llm section")

    async def run() -> tuple[list[Fields | Failed], Usage]:
        provider = make_provider(access)
        with stopped_by_signal() as stop:
            buyer = Buyer(config, access, provider, bucket, stop)
            try:
                return await buyer.buy(pictures, on_done), buyer.ledger.usage
            finally:
                await provider.close()

    results, usage = asyncio.run(run())
    concept = config.spec.concept
    outcomes: dict[str, Caption | Failed] = {
        picture.file_name: result
        if isinstance(result, Failed)
        else Caption(assemble(result, concept), "bought", [])
        for picture, result in zip(pictures, results, strict=True)
    }
    return outcomes, usage


@contextmanager
def stopped_by_signal() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set: calls in flight are finished and kept, none is begun."""
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


def _settle_failures(
    config: AnnotateStep,
    pictures: Sequence[Picture],
    outcomes: dict[str, Caption | Failed],
    usage: Usage | None,
) -> Captioned:
    """Apply onCaptionFailure to the pictures that have no caption."""
    captions: dict[str, Caption] = {}
    failed: list[SkippedImage] = []
    for picture in pictures:
        outcome = outcomes[picture.file_name]
        if isinstance(outcome, Caption):
            captions[picture.file_name] = outcome
        elif config.spec.annotation.on_caption_failure is OnCaptionFailure.TEMPLATE:
            warning = f"no caption, so the template: {outcome.reason}"
            captions[picture.file_name] = Caption(template(config.spec.concept), "template", [warning])
        else:
            failed.append(SkippedImage(key=picture.source.key, reason=f"no caption: {outcome.reason}"))
    if failed and config.spec.annotation.on_caption_failure is OnCaptionFailure.FAIL:
        asked = config.spec.annotation.mode is AnnotationMode.LLM
        raise BadDataError(
            f"{len(failed)} images have no caption (annotation.onCaptionFailure: Skip or Template goes on): "
            + name_each(failed),
            Reason.CAPTION_REFUSED if asked else Reason.DATASET_INVALID,
        )
    return Captioned(captions, failed, usage)
