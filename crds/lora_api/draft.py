"""Manifests from a few answers: `lora train`, `lora init` and the web page start from them."""

from __future__ import annotations

import re
from typing import Any
from unicodedata import combining, normalize

from . import API_VERSION, KIND
from .dataset import AnnotationMode, Concept, ConceptType
from .recipes import BY_CONCEPT, RECIPES
from .training import Recipe, Training

PREVIEWS = 5
"""Number of times that previews are generated, by default, while a drafted job trains."""
TYPICAL_IMAGES = 10
"""Number of images for which the steps of a recipe are estimated. Only the interval of the previews depends on them."""
BY_RECIPE = {recipe: kind for kind, recipe in BY_CONCEPT.items()}
"""The type of the concept that each recipe is for. With Auto and None it is the default."""
MAX_NAME = 50
"""Characters of a derived name."""


def draft_manifest(
    name: str,
    token: str,
    class_name: str,
    mode: AnnotationMode,
    steps: int | None = None,
    *,
    recipe: Recipe = Recipe.NONE,
    kind: ConceptType | None = None,
) -> dict[str, Any]:
    """Build the manifest of a job. Fields that are not set have their defaults.

    Args:
        name: name of the job. The dataset has the prefix `NAME/`.
        token: the rare word for the concept.
        class_name: the ordinary noun for it.
        mode: where the captions come from.
        steps: training steps; None for the default of the job.
        recipe: the recipe of the training.
        kind: the type of the concept; None for that of the recipe.
    """
    kind = kind or BY_RECIPE.get(recipe, ConceptType.SUBJECT)
    concept = {"token": token, "className": class_name}
    if kind is not ConceptType.SUBJECT:
        concept["type"] = str(kind)
    # The words may be invalid: the job's parser reports them.
    opening = Concept.model_construct(token=token, class_name=class_name, type=kind).opening
    scene = "of a beach at sunset" if kind is ConceptType.STYLE else "on a beach at sunset"
    training: dict[str, Any] = {} if recipe is Recipe.NONE else {"recipe": str(recipe)}
    if steps:
        training["maxSteps"] = steps
    every = max(1, (steps or _expected_steps(recipe, kind)) // PREVIEWS)
    training["preview"] = {"prompts": [opening, f"{opening} {scene}"], "everySteps": every}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {
            "dataset": {"prefix": f"{name}/"},
            "concept": concept,
            "annotation": {"mode": str(mode)},
            "training": training,
        },
    }


def _expected_steps(recipe: Recipe, kind: ConceptType) -> int:
    if recipe is Recipe.NONE:
        return Training().max_steps
    return RECIPES[BY_CONCEPT[kind] if recipe is Recipe.AUTO else recipe].steps.of(TYPICAL_IMAGES)


def slug(text: str) -> str:
    """Derive a Kubernetes name from a text; empty if the text has no usable characters.

    Letters lose their accents: `Föto` becomes `foto`.
    """
    plain = "".join(char for char in normalize("NFKD", text.casefold()) if not combining(char))
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:MAX_NAME].strip("-")
