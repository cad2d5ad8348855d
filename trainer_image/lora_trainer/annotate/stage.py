"""The annotation stage: writes clean images, captions and a manifest, or finds an adapter that can be reused."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import lora_api
from lora_api.job import AnnotationMode, Approval, Masks, Reuse
from lora_api.manifest import dataset_sha256, input_hash, models_identity
from lora_api.reasons import Reason
from lora_api.stages import AnnotateConfig, CaptionsResult, Outcome, StageResult

from ..errors import BadDataError
from ..progress import Reporter
from ..runtime import run_stage
from ..store import Store, find_reusable
from .captions import caption_images
from .existing import read_existing
from .intake import check_enough, check_intake, clean_dataset
from .listing import list_dataset
from .masks import mask_warnings
from .prompt import PROMPT_VERSION
from .publish import DatasetReport, Published, find_published, publish, report_image, write_report
from .segmentation import model_masks


def main(config_path: Path) -> int:
    """Run the stage and return its exit code."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every request
    # SIGTERM, which Kubernetes sends to stop a pod, raises KeyboardInterrupt like SIGINT.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run_stage(config_path, AnnotateConfig, work)
    finally:
        signal.signal(signal.SIGTERM, before)


def work(config: AnnotateConfig, reporter: Reporter) -> StageResult:
    """Annotate one job.

    Raises:
        StageError: with the exit code and the reason that the job's status will show.
    """
    # A pod that is started again after it has published continues from the published captions.
    store = Store(config.store)
    published = find_published(store.output, config.keys) or annotate(config, store, reporter)
    return reused(config, store, published) or result(config, published, Outcome.CAPTIONED)


def annotate(config: AnnotateConfig, store: Store, reporter: Reporter) -> Published:
    """Clean the images, caption them, and publish both.

    Raises:
        BadDataError: when too few images are good. The report is written and attached to the error before.
        StageError: any other failure of the store or the language model.
    """
    spec = config.spec
    listing = list_dataset(store.input, spec.dataset.prefix)
    segment = model_masks(config, store.input) if spec.annotation.masks is Masks.MODEL else None
    intake = clean_dataset(store, config.keys, spec, listing, segment)
    try:
        check_intake(spec, intake)
    except BadDataError as error:
        report = DatasetReport(images=[], skipped=intake.skipped)
        write_report(store.output, config.keys, report)
        error.dataset = report.status()
        raise
    existing = read_existing(
        store.input, spec.dataset.prefix, listing.captions, [image.source.key for image in intake.images]
    )
    captioned = caption_images(config, intake.images, existing, store.output, reporter.update)
    skipped = [*intake.skipped, *captioned.skipped]
    check_enough(spec, len(captioned.captions), skipped)
    used = [image for image in intake.images if image.file_name in captioned.captions]
    images = [report_image(image, captioned.captions[image.file_name]) for image in used]
    return publish(
        store.output,
        config.keys,
        images=used,
        captioned=captioned,
        report=DatasetReport(
            images=images,
            skipped=skipped,
            warnings=[
                *listing.warnings,
                *existing.warnings,
                *captioned.warnings,
                *mask_warnings(spec, used),
            ],
        ),
        dataset=dataset_sha256([item for image in used for item in image.hashed]),
        prompt_version=PROMPT_VERSION,
        model=config.llm.model if config.llm and spec.annotation.mode is AnnotationMode.LLM else "",
    )


def reused(config: AnnotateConfig, store: Store, published: Published) -> StageResult | None:
    """Return the result with an existing adapter that was trained from exactly these inputs, or None.

    Where approval is required, the captions are those that `approvedCaptions` names. After an edit they differ
    from the captions that this stage wrote. While it names none, nothing can be reused.
    """
    annotation = config.spec.annotation
    captions = published.captions_sha256
    if annotation.approval is Approval.REQUIRED:
        captions = annotation.approved_captions.removeprefix("sha256:")
    if config.spec.output.reuse is not Reuse.IF_UNCHANGED or not captions:
        return None
    identity = hash_of(config, published, captions)
    manifest = find_reusable(store.output, config.namespace, identity)
    if manifest is None or manifest.input_hash != identity:
        return None
    reusable = result(config, published, Outcome.REUSED)
    return reusable.model_copy(
        update={"input_hash": identity, "adapter": manifest.adapter, "previews": manifest.previews}
    )


def hash_of(config: AnnotateConfig, published: Published, captions: str) -> str:
    """Return the input hash of this job for captions with this sha256."""
    training = config.spec.with_recipe(published.report.status().images).training
    return input_hash(
        dataset=published.dataset_sha256,
        captions=captions,
        concept=config.spec.concept,
        training=training,
        formats=list(config.spec.output.formats),
        captions_published=config.spec.output.captions,
        base_model=models_identity(config.base_model, config.scoring, training),
        trainer_version=lora_api.__version__,
    )


def result(config: AnnotateConfig, published: Published, outcome: Outcome) -> StageResult:
    """Return the stage's result with the counts, the first warning and the input hash."""
    status = published.report.status()
    warned = f", {status.warnings} warnings, the first: {status.first_warning}" if status.warnings else ""
    return StageResult(
        outcome=outcome,
        reason=Reason.REUSED if outcome is Outcome.REUSED else Reason.CAPTIONED,
        message=f"{status.images} images{warned}",
        input_hash=hash_of(config, published, published.captions_sha256),
        dataset=status,
        captions=CaptionsResult(
            key=config.keys.captions,
            sha256=published.captions_sha256,
            dataset_sha256=published.dataset_sha256,
            total=status.images,
            usage=published.usage,
        ),
    )
