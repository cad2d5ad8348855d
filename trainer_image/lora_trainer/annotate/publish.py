"""What the annotation step leaves in the store: metadata.jsonl, the dataset report, and last the manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from lora_api.base import Lenient
from lora_api.keys import JobKeys
from lora_api.manifest import CaptionsManifest, FileEntry, canonical_json, sha256_hex
from lora_api.status import DatasetStatus, SkippedImage, Usage

from ..store import Bucket, ObjectMissingError
from .captioning import Caption, Captioned
from .intake import Picture
from .review import validate_edited


class ImageReport(Lenient):
    """What became of one image."""

    key: str
    """The customer's."""
    file_name: str
    width: int
    height: int
    source_width: int
    source_height: int
    format: str
    caption_from: str
    warnings: list[str] = []


class DatasetReport(Lenient):
    """Every image with its outcome; whole here, cut in status."""

    images: list[ImageReport]
    skipped: list[SkippedImage]

    def status(self) -> DatasetStatus:
        return DatasetStatus(images=len(self.images), skipped=self.skipped)


class Published(Lenient):
    """The captions of a job as they lie in the store."""

    captions_sha256: str
    dataset_sha256: str
    report: DatasetReport
    usage: Usage | None = None


def metadata_lines(pictures: Sequence[Picture], captioned: Captioned) -> bytes:
    """metadata.jsonl: Hugging Face's imagefolder convention, with the clean image's size and framing."""
    rows = [_row(picture, captioned.captions[picture.file_name]) for picture in pictures]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _row(picture: Picture, caption: Caption) -> dict[str, Any]:
    row: dict[str, Any] = {
        "file_name": picture.file_name,
        "text": caption.text,
        "width": picture.width,
        "height": picture.height,
    }
    if picture.crop is not None:
        row["crop"] = picture.crop
    return row


def report_image(picture: Picture, caption: Caption) -> ImageReport:
    return ImageReport(
        key=picture.source.key,
        file_name=picture.file_name,
        width=picture.width,
        height=picture.height,
        source_width=picture.source_width,
        source_height=picture.source_height,
        format=picture.source_format,
        caption_from=caption.origin,
        warnings=[*picture.warnings, *caption.warnings],
    )


def publish(
    bucket: Bucket,
    keys: JobKeys,
    *,
    pictures: Sequence[Picture],
    captioned: Captioned,
    report: DatasetReport,
    dataset: str,
    prompt_version: str,
    model: str,
) -> Published:
    """Write the captions and, when everything else lies there, the manifest that says so.

    Args:
        pictures: those that have a caption.
        dataset: `dataset_sha256` of their sources.
    """
    captions = bucket.put(keys.captions, metadata_lines(pictures, captioned), "application/x-ndjson")
    written = write_report(bucket, keys, report)
    images = [picture.entry for picture in pictures]
    manifest = CaptionsManifest(
        captions_sha256=captions.sha256,
        dataset_sha256=dataset,
        prompt_version=prompt_version,
        model=model,
        files=[captions, written, *images],
        usage=captioned.usage,
    )
    bucket.put(keys.captions_manifest, canonical_json(manifest.to_wire()), "application/json")
    return Published(
        captions_sha256=captions.sha256, dataset_sha256=dataset, report=report, usage=captioned.usage
    )


def write_report(bucket: Bucket, keys: JobKeys, report: DatasetReport) -> FileEntry:
    return bucket.put(keys.dataset_report, canonical_json(report.to_wire()), "application/json")


def find_published(bucket: Bucket, keys: JobKeys) -> Published | None:
    """The captions that this very job published before, when they are complete.

    metadata.jsonl itself may have been edited by a reviewer since: it is taken as it lies there.

    Raises:
        BadDataError: when it was edited into something that cannot be trained on.
    """
    try:
        manifest = CaptionsManifest.model_validate_json(bucket.get(keys.captions_manifest))
        report = DatasetReport.model_validate_json(bucket.get(keys.dataset_report))
        captions = bucket.get(keys.captions)
    except (ObjectMissingError, ValidationError):
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
    return [entry for entry in manifest.files if entry.key != keys.captions]
