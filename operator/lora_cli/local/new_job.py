"""Jobs from a few options: `lora train` runs them, `lora init` writes them to a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_api.draft import draft_manifest, slug
from lora_api.job import AnnotationMode, ConceptType, Recipe
from lora_api.profile import Profile

from ..errors import require_folder
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


def make_document(job: NewJob, mode: AnnotationMode, kind: ConceptType | None = None) -> dict[str, Any]:
    """Build the manifest of a job. Fields that are not set have their defaults.

    Args:
        kind: the type of the concept; None for that of the recipe.
    """
    name = job.name or slug(job.folder.resolve().name) or slug(job.class_name)
    return draft_manifest(name, job.token, job.class_name, mode, job.steps, recipe=job.recipe, kind=kind)


def choose_mode(folder: Path, profile: Profile) -> tuple[AnnotationMode, str]:
    """Choose how the images get captions: Existing if all have one, LLM if a key is set, otherwise Template.

    Returns:
        The mode, and a message with the reason.

    Raises:
        UsageError, NoInputError, BadDataError: as `captions_of`.
    """
    captioned = [bool(text.strip()) for text in captions_of(folder).values()]
    if all(captioned):
        return AnnotationMode.EXISTING, "the captions beside the images are used"
    kept = f" for the {captioned.count(False)} images without one" if any(captioned) else ""
    if llm_key(profile):
        return AnnotationMode.LLM, f"a language model writes the captions{kept}"
    return (
        AnnotationMode.TEMPLATE,
        f"no API key is set, so the caption is a template{kept or ' for every image'}; a key gives better ones",
    )


def captions_of(folder: Path) -> dict[str, str]:
    """Read the captions of a folder, by file name of the image. The text is empty for an image without a caption.

    Raises:
        UsageError: when there is no such folder.
        NoInputError: when the folder has no images.
        BadDataError: when the folder has too many files, or one whose name is not UTF-8.
    """
    from lora_trainer.annotate.inspection import read_captions

    require_folder(folder)
    return read_captions(folder)[0]
