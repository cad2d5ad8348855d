"""Recipes: defaults of `training` by the kind of concept and the number of images.

docs/reference/recipes.md has the reason for each value. A recipe sets no field that the annotation stage reads, because
the number of images is known only after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from .dataset import ConceptType
from .training import Method, Recipe, Targets, Training

Settings = dict[str, Any]
"""Fields of `training` as on the wire, nested."""
DEFAULT_RATE = Training().learning_rate
SMALLEST_RATE = Decimal("1e-99")
"""Smallest rate that a spec can express."""


@dataclass(frozen=True)
class Amount:
    """A number that grows with the number of images, within bounds."""

    per_image: int
    least: int
    most: int

    def of(self, images: int) -> int:
        return min(max(self.per_image * images, self.least), self.most)

    def __str__(self) -> str:
        return f"{self.per_image} per image, {self.least} to {self.most}"


@dataclass(frozen=True)
class Values:
    """The values that differ between the recipes."""

    rank: int
    steps: Amount
    class_images: Amount | None = None
    """Number of class images for prior preservation; None: no prior preservation."""
    learning_rate: Decimal | None = None
    """Learning rate of the UNet; None: the field's default."""
    targets: Targets = Targets.ATTENTION_AND_FEED_FORWARD
    noise_offset: Decimal = Decimal(0)
    caption_dropout: Decimal = Decimal(0)


RECIPES: Mapping[Recipe, Values] = {
    Recipe.SUBJECT: Values(rank=16, steps=Amount(100, 500, 1500)),
    Recipe.PERSON: Values(rank=32, steps=Amount(120, 800, 2000), class_images=Amount(10, 50, 200)),
    Recipe.STYLE: Values(
        rank=32,
        steps=Amount(100, 1000, 2000),
        targets=Targets.FULL,
        noise_offset=Decimal("0.05"),
        caption_dropout=Decimal("0.2"),
    ),
}
BY_CONCEPT: Mapping[ConceptType, Recipe] = {
    ConceptType.SUBJECT: Recipe.SUBJECT,
    ConceptType.PERSON: Recipe.PERSON,
    ConceptType.STYLE: Recipe.STYLE,
}
"""The recipe that Auto stands for."""


@dataclass(frozen=True)
class Completed:
    """Settings after a recipe was applied."""

    training: Training
    """All settings, with recipe None."""
    kind: Recipe
    """The recipe that was applied; Subject, Person or Style."""
    chosen: Mapping[str, Any]
    """Values that the recipe set, by the field's path below `training`."""
    pending: Mapping[str, Amount]
    """Values that the recipe will set once the number of images is known, by path."""


def complete(
    training: Training, concept: ConceptType, images: int | None, accepts: Callable[[Training], bool]
) -> Completed:
    """Set the fields that were not set explicitly to the values of the recipe.

    Values that belong together are set together. They are left out if they do not go together with the explicit ones.

    Args:
        training: settings with a recipe.
        concept: the kind of concept, which Auto depends on.
        images: number of images with a caption; None: not known yet.
        accepts: whether the rules of the spec accept settings.
    """
    kind = BY_CONCEPT[concept] if training.recipe is Recipe.AUTO else training.recipe
    settings = training.to_wire()
    del settings["recipe"]
    values = _values(kind, training.method)
    chosen: dict[str, Any] = {}
    for group in _groups(values, settings, images):
        new = {path: value for path, value in group.items() if not _has(settings, path)}
        candidate = _with_values(settings, new)
        if new and accepts(Training.model_validate(candidate)):
            settings = candidate
            chosen |= new
    pending = _pending(values, settings) if images is None else {}
    return Completed(Training.model_validate(settings), kind, chosen, pending)


def _values(kind: Recipe, method: Method) -> Values:
    values = RECIPES[kind]
    if method is not Method.DREAMBOOTH_EXTRACT:
        return values
    # The class of a style is a medium, such as drawings. The rules advise a class prompt for it, which a recipe cannot write.
    images = None if kind is Recipe.STYLE else RECIPES[Recipe.PERSON].class_images
    return replace(values, rank=32, class_images=images, learning_rate=Decimal("5e-6"))


def _groups(values: Values, settings: Settings, images: int | None) -> Iterator[dict[str, Any]]:
    """Yield the values of a recipe by path, those that belong together in one mapping."""
    if "alpha" not in settings:
        yield {"rank": values.rank, "alpha": settings.get("rank", values.rank)}
    # With DreamBoothExtract, a rule refuses this group.
    yield {"adapter.targets": str(values.targets)}
    yield {"lrScheduler": "cosine"}
    # A rate for the UNet's own weights says nothing about that of the text encoders, which are trained by adapters.
    adapts_unet = values.learning_rate is None
    rate = Decimal(settings["learningRate"] if adapts_unet and "learningRate" in settings else DEFAULT_RATE)
    # Six digits, because a spec takes at most 16.
    half = max(Decimal(f"{rate / 2:.6g}"), SMALLEST_RATE)
    yield {"textEncoder.train": True, "textEncoder.learningRate": str(half.normalize())}
    if values.learning_rate is not None:
        yield {"learningRate": f"{values.learning_rate:e}"}
    if images is not None:
        yield {"maxSteps": values.steps.of(images)}
    is_disabled = settings.get("priorPreservation", {}).get("enabled") is False
    if values.class_images is not None and not is_disabled:
        prior: dict[str, Any] = {"priorPreservation.enabled": True}
        if images is not None:
            prior["priorPreservation.numClassImages"] = values.class_images.of(images)
        yield prior
    if values.noise_offset:
        yield {"noiseOffset": str(values.noise_offset)}
    if values.caption_dropout:
        yield {"captionDropout": str(values.caption_dropout)}


def _pending(values: Values, settings: Settings) -> dict[str, Amount]:
    """Return the values that depend on the number of images, of the fields that are not set."""
    amounts = {"maxSteps": values.steps}
    if values.class_images is not None and settings.get("priorPreservation", {}).get("enabled"):
        amounts["priorPreservation.numClassImages"] = values.class_images
    return {path: amount for path, amount in amounts.items() if not _has(settings, path)}


def _has(settings: Settings, path: str) -> bool:
    place: Any = settings
    for part in path.split("."):
        if part not in place:
            return False
        place = place[part]
    return True


def _with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Copy settings, with further values by path."""
    result = dict(settings)
    for path, value in values.items():
        name, _, rest = path.partition(".")
        result[name] = _with_values(result.get(name, {}), {rest: value}) if rest else value
    return result


def without(settings: Settings, path: str) -> Settings:
    """Copy settings without the field at a path."""
    name, _, rest = path.partition(".")
    kept = {key: value for key, value in settings.items() if key != name}
    return {**kept, name: without(settings[name], rest)} if rest else kept
