"""Jobs from a few options: `lora train` runs them, `lora init` writes them to a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_api.draft import draft_manifest, slug
from lora_api.job import AnnotationMode, Recipe
from lora_api.profile import Profile

from ..errors import UsageError
from .preflight import llm_key


@dataclass(frozen=True)
class NewJob:
    """The options of `lora train` and `lora init` that define a job."""

    folder: Path
    """Folder of the images."""
    token: str
    class_name: str
    name: str = ""
    """Name of the job; empty to derive it from the folder's name."""
    steps: int | None = None
    """Training steps; None for the default of the job."""
    recipe: Recipe = Recipe.NONE


def make_document(job: NewJob, mode: AnnotationMode) -> dict[str, Any]:
    """Build the manifest of a job. Fields that are not set have their defaults."""
    name = job.name or slug(job.folder.resolve().name) or slug(job.class_name)
    return draft_manifest(name, job.token, job.class_name, mode, job.steps, recipe=job.recipe)


def choose_mode(folder: Path, profile: Profile) -> tuple[AnnotationMode, str]:
    """Choose how the images get captions: Existing if all have one, LLM if a key is set, otherwise Template.

    Returns:
        The mode, and a message with the reason.

    Raises:
        UsageError: when the folder has no images.
    """
    if all(text.strip() for text in captions_of(folder).values()):
        return AnnotationMode.EXISTING, "the captions beside the images are used"
    if llm_key(profile):
        return AnnotationMode.LLM, "a language model writes the captions"
    return (
        AnnotationMode.TEMPLATE,
        "no API key is set, so every caption is a template; a key gives better ones",
    )


def captions_of(folder: Path) -> dict[str, str]:
    """Read the captions of a folder, by file name of the image. The text is empty for an image without a caption.

    Raises:
        UsageError: when the folder has no images, or too many files.
    """
    from lora_trainer.annotate.inspection import read_captions
    from lora_trainer.errors import StageError

    try:
        return read_captions(folder)[0]
    except StageError as error:
        raise UsageError(str(error)) from None
