"""The results that the annotation stage writes to the store: metadata.jsonl, the dataset report, then the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from pydantic import ValidationError

from lora_api.base import Lenient
from lora_api.caption_rows import CaptionRow, CaptionRowsError, write_rows
from lora_api.keys import JobKeys
from lora_api.manifest import CaptionsManifest, FileEntry, canonical_json, sha256_hex
from lora_api.status import DatasetStatus, SkippedImage, Usage

from ..errors import BadDataError
from ..store import Bucket, ObjectMissingError, ObjectTooLargeError
from .captions import Caption, Captioned
from .intake import DatasetImage
from .review import validate_edited


class ImageReport(Lenient):
    """The outcome of one image."""

    key: str
    """Key of the customer's file."""
    file_name: str
    """Name of the clean image."""
    width: int
    """Width of the clean image, in pixels."""
    height: int
    source_width: int
    """Width of the customer's image after orientation, in pixels."""
    source_height: int
    format: str
    caption_from: str
    mask: str = ""
    """Origin of the mask: Own, GrabCut, Model or None. Empty in reports of earlier versions."""
    warnings: list[str] = []


class DatasetReport(Lenient):
    """The outcome of every image. The job's status holds only a part of it."""

    images: list[ImageReport]
    skipped: list[SkippedImage]
    warnings: list[str] = []
    """Warnings about the dataset as a whole and about files that belong to no image."""

    @property
    def all_warnings(self) -> list[str]:
        """All warnings. Those about an image begin with its key."""
        return self.warnings + [f"{i.key}: {warning}" for i in self.images for warning in i.warnings]

    def status(self) -> DatasetStatus:
        """Summarise the report for the job's status."""
        warnings = self.all_warnings
        first = warnings[0] if warnings else ""
        return DatasetStatus(
            images=len(self.images), skipped=self.skipped, warnings=len(warnings), first_warning=first[:200]
        )


class Published(Lenient):
    """The published captions of a job."""

    captions_sha256: str
    """sha256 of metadata.jsonl as it is in the store now."""
    dataset_sha256: str
    """`dataset_sha256` of the customer's images and masks, and of masks by a model."""
    report: DatasetReport
    usage: Usage | None = None


def metadata_lines(images: Sequence[DatasetImage], captioned: Captioned) -> bytes:
    """Build metadata.jsonl: captions, size, crop, repeats and mask of each clean image.

    Raises:
        BadDataError: when the captions are too long together.
    """
    rows = [
        CaptionRow(
            file_name=image.file_name,
            text=captioned.captions[image.file_name].text,
            width=image.width,
            height=image.height,
            crop=image.crop,
            captions=list(captioned.captions[image.file_name].more) or None,
            repeats=captioned.repeats.get(image.file_name),
            mask=PurePosixPath(image.mask.key).name if image.mask else None,
        )
        for image in images
    ]
    try:
        return write_rows(rows)
    except CaptionRowsError as error:
        raise BadDataError(f"{error}; shorten them in the dataset") from error


def report_image(image: DatasetImage, caption: Caption) -> ImageReport:
    return ImageReport(
        key=image.source.key,
        file_name=image.file_name,
        width=image.width,
        height=image.height,
        source_width=image.source_width,
        source_height=image.source_height,
        format=image.source_format,
        caption_from=caption.origin,
        mask=image.mask_origin,
        warnings=[*image.warnings, *caption.warnings],
    )


def publish(
    bucket: Bucket,
    keys: JobKeys,
    *,
    images: Sequence[DatasetImage],
    captioned: Captioned,
    report: DatasetReport,
    dataset: str,
    prompt_version: str,
    model: str,
) -> Published:
    """Write the captions and the report, then the manifest that lists them and the clean images.

    Args:
        images: the images that have a caption.
        dataset: `dataset_sha256` of the customer's images and masks, and of masks by a model.
        model: the language model; empty if none was asked.

    Raises:
        BadDataError: as in `metadata_lines`. Nothing is written then.
    """
    captions = bucket.put(keys.captions, metadata_lines(images, captioned), "application/x-ndjson")
    written = write_report(bucket, keys, report)
    entries = [entry for image in images for entry in (image.entry, image.mask) if entry]
    manifest = CaptionsManifest(
        captions_sha256=captions.sha256,
        dataset_sha256=dataset,
        prompt_version=prompt_version,
        model=model,
        files=[captions, written, *entries],
        usage=captioned.usage,
    )
    bucket.put(keys.captions_manifest, canonical_json(manifest.to_wire()), "application/json")
    return Published(
        captions_sha256=captions.sha256, dataset_sha256=dataset, report=report, usage=captioned.usage
    )


def write_report(bucket: Bucket, keys: JobKeys, report: DatasetReport) -> FileEntry:
    return bucket.put(keys.dataset_report, canonical_json(report.to_wire()), "application/json")


def find_published(bucket: Bucket, keys: JobKeys) -> Published | None:
    """Return the captions that this job has published before, or None when they are missing or incomplete.

    A reviewer may have edited metadata.jsonl since. The edited captions are returned then.

    Raises:
        BadDataError: when the edited captions cannot be trained on.
    """
    try:
        manifest = CaptionsManifest.model_validate_json(bucket.get(keys.captions_manifest))
        report = DatasetReport.model_validate_json(bucket.get(keys.dataset_report))
        captions = bucket.get(keys.captions)
    except (ObjectMissingError, ObjectTooLargeError, ValidationError):
        return None
    if not all(bucket.holds(entry) for entry in _unedited(manifest, keys)):
        return None
    digest = sha256_hex(captions)
    if digest != manifest.captions_sha256:
        kept = {row.file_name for row in validate_edited(captions, {i.file_name for i in report.images})}
        images = [image for image in report.images if image.file_name in kept]
        report = report.model_copy(update={"images": images})
    return Published(
        captions_sha256=digest,
        dataset_sha256=manifest.dataset_sha256,
        report=report,
        usage=manifest.usage,
    )


def _unedited(manifest: CaptionsManifest, keys: JobKeys) -> list[FileEntry]:
    """Return the files that a reviewer does not edit: all except metadata.jsonl."""
    return [entry for entry in manifest.files if entry.key != keys.captions]
