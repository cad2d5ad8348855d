"""The annotation step: images in, clean images, captions and a manifest out, or an adapter found again."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import lora_api
from lora_api.job import AnnotationMode, Approval, Reuse
from lora_api.keys import reuse_pointer
from lora_api.manifest import dataset_sha256, input_hash
from lora_api.reasons import Reason
from lora_api.steps import AnnotateStep, CaptionsResult, Outcome, StepResult

from ..errors import BadDataError
from ..progress import Reporter
from ..runtime import run_step
from ..store import Store, find_reusable
from .captioning import caption_pictures
from .existing import read_existing
from .intake import check_enough, check_intake, list_dataset, take_in
from .prompt import PROMPT_VERSION
from .publish import DatasetReport, Published, find_published, publish, report_image, write_report


def main(config_path: Path) -> int:
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every request
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a pod that is stopped is interrupted
    try:
        return run_step(config_path, AnnotateStep, work)
    finally:
        signal.signal(signal.SIGTERM, before)


def work(config: AnnotateStep, reporter: Reporter) -> StepResult:
    """Annotate one job.

    Raises:
        StepError: with the exit code and the reason that the job's status will show.
    """
    store = Store(config.store)
    published = find_published(store.output, config.keys) or annotate(config, store, reporter)
    return reused(config, store, published) or result(config, published, Outcome.CAPTIONED)


def annotate(config: AnnotateStep, store: Store, reporter: Reporter) -> Published:
    """Intake, captions, publication."""
    spec = config.spec
    listing = list_dataset(store.input, spec.dataset.prefix)
    intake = take_in(store, config.keys, spec, listing)
    try:
        check_intake(spec, intake)
    except BadDataError as error:
        report = DatasetReport(images=[], skipped=intake.skipped)
        write_report(store.output, config.keys, report)
        error.dataset = report.status()
        raise
    existing = read_existing(store.input, spec.dataset.prefix, listing.captions)
    captioned = caption_pictures(config, intake.pictures, existing, store.output, reporter.update)
    skipped = [*intake.skipped, *captioned.skipped]
    check_enough(spec, len(captioned.captions), skipped)
    used = [picture for picture in intake.pictures if picture.file_name in captioned.captions]
    images = [report_image(picture, captioned.captions[picture.file_name]) for picture in used]
    return publish(
        store.output,
        config.keys,
        pictures=used,
        captioned=captioned,
        report=DatasetReport(images=images, skipped=skipped),
        dataset=dataset_sha256([(picture.source.key, picture.source.etag) for picture in used]),
        prompt_version=PROMPT_VERSION,
        model=config.llm.model if config.llm and spec.annotation.mode is AnnotationMode.LLM else "",
    )


def reused(config: AnnotateStep, store: Store, published: Published) -> StepResult | None:
    """The result that points at an adapter trained from exactly these inputs; None when there is none.

    Where approval is required, only captions that are approved count: those that `approvedCaptions` names,
    which after an edit are not the ones just made. Before it names any, nothing can be reused.
    """
    annotation = config.spec.annotation
    captions = published.captions_sha256
    if annotation.approval is Approval.REQUIRED:
        captions = annotation.approved_captions.removeprefix("sha256:")
    if config.spec.output.reuse is not Reuse.IF_UNCHANGED or not captions:
        return None
    identity = hash_of(config, published, captions)
    manifest = find_reusable(store.output, reuse_pointer(config.namespace, identity))
    if manifest is None or manifest.input_hash != identity:
        return None
    found = result(config, published, Outcome.REUSED)
    return found.model_copy(
        update={"input_hash": identity, "adapter": manifest.adapter, "previews": manifest.previews}
    )


def hash_of(config: AnnotateStep, published: Published, captions: str) -> str:
    """The input hash of this job if it is trained on the captions with this sha256."""
    return input_hash(
        dataset=published.dataset_sha256,
        captions=captions,
        concept=config.spec.concept,
        training=config.spec.training,
        formats=list(config.spec.output.formats),
        base_model=config.base_model.identity(),
        trainer_version=lora_api.__version__,
    )


def result(config: AnnotateStep, published: Published, outcome: Outcome) -> StepResult:
    images = published.report.images
    warned = sum(1 for image in images if image.warnings)
    return StepResult(
        outcome=outcome,
        reason=Reason.REUSED if outcome is Outcome.REUSED else Reason.CAPTIONED,
        message=f"{len(images)} images" + (f", {warned} with warnings" if warned else ""),
        input_hash=hash_of(config, published, published.captions_sha256),
        dataset=published.report.status(),
        captions=CaptionsResult(
            key=config.keys.captions,
            sha256=published.captions_sha256,
            dataset_sha256=published.dataset_sha256,
            total=len(images),
            usage=published.usage,
        ),
    )
