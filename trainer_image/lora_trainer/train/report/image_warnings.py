"""Warnings about training images, from the annotation stage's report and from this training."""

from __future__ import annotations

import json
from typing import Any

from ...annotate.lint import check_captions
from .report_data import ReportData

MAX_ENLARGEMENT = 1.25
"""Factor of enlargement above which there is a warning."""


def image_warnings(data: ReportData) -> dict[str, list[str]]:
    """Collect warnings by image key, from the annotation stage, the resolution and the caption."""
    warnings: dict[str, list[str]] = {image.key: [] for image in data.training_images}
    for key, texts in _annotation_warnings(data).items():
        warnings.get(key, []).extend(texts)
    for image in data.training_images:
        if image.enlarged > MAX_ENLARGEMENT:
            warnings[image.key].append(
                f"The image is small: it was enlarged {image.enlarged:.1f} times, so details are blurred."
            )
    concept = data.config.spec.concept
    captions = {image.key: image.caption for image in data.training_images}
    for finding in check_captions(captions, concept.token, concept.class_name):
        warnings[finding.file_name].append(f"Caption: {finding.message}.")
    return {key: list(dict.fromkeys(texts)) for key, texts in warnings.items()}


def dataset_warnings(data: ReportData) -> list[str]:
    """Return the annotation stage's warnings about the dataset as a whole, and the files that were not used."""
    report = _annotation_report(data)
    warnings = [str(text) for text in report.get("warnings", [])]
    prefix = data.config.spec.dataset.prefix
    for item in report.get("skipped", []):
        if isinstance(item, dict):
            warnings.append(f"{str(item.get('key', '')).removeprefix(prefix)}: {item.get('reason', '')}")
    return warnings


def _annotation_warnings(data: ReportData) -> dict[str, list[str]]:
    """Read the warnings of the annotation stage by image key; none if its report has another format."""
    keys = data.config.keys
    try:
        return {
            keys.image_named(image["fileName"]): list(map(str, image.get("warnings", [])))
            for image in _annotation_report(data).get("images", [])
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _annotation_report(data: ReportData) -> dict[str, Any]:
    """Read the report of the annotation stage; empty if it is missing or has another format."""
    content = data.fetch(data.config.keys.dataset_report)
    try:
        report = json.loads(content) if content else {}
    except (ValueError, RecursionError):
        return {}
    lists = isinstance(report, dict) and all(
        isinstance(report.get(name, []), list) for name in ("images", "warnings", "skipped")
    )
    return report if lists else {}
