"""Recipes in the commands that work on a job's file: the number of images, and what the recipe sets for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_api.job import JobSpec, Recipe


def has_recipe(spec: JobSpec) -> bool:
    return spec.training.recipe is not Recipe.NONE


def count_images(spec: JobSpec, folder: Path | None) -> int:
    """Count the images of a folder; without a folder, return the most that the job takes.

    Raises:
        UsageError, NoInputError, BadDataError: as `captions_of`.
    """
    from .local.new_job import captions_of

    return spec.dataset.max_images if folder is None else len(captions_of(folder))


def describe_recipe(spec: JobSpec, images: int | None) -> str:
    """Say which values the recipe of a job sets.

    Args:
        images: number of images; None to describe the values that depend on it.
    """
    completed = spec.completed(images)
    values = _list({**completed.chosen, **completed.pending})
    number = "" if images is None else f" for {images} images"
    return (
        f"recipe {completed.kind}{number} sets {values}"
        if values
        else f"recipe {completed.kind} sets nothing"
    )


def _list(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{path} {str(value).lower() if isinstance(value, bool) else value}" for path, value in values.items()
    )
