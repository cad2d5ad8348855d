"""The HTML page: preparation of the report's data for the template, which escapes all text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lora_api.job import parse_spec
from lora_api.stages import TrainConfig
from lora_api.status import PreviewStatus

from ...units import format_duration
from . import charts
from .assessment import assess
from .image_warnings import dataset_warnings, image_warnings
from .images import Thumbnails, TrainingImage
from .report_data import ReportData
from .snippet import usage_snippet

MAX_PREVIEWS = 8
"""Largest number of previews for each prompt. Their steps are evenly spread and include the first and last."""


@dataclass(frozen=True)
class Preview:
    """A preview in the report."""

    step: int | None
    """Step after which it was generated; None for the base preview."""
    thumbnail: str | None
    """Data URI; None if there is no image."""


@dataclass(frozen=True)
class Prompt:
    """A prompt with its previews, the base preview first."""

    text: str
    previews: list[Preview]


@dataclass(frozen=True)
class ShownImage:
    """A training image in the report."""

    source: TrainingImage
    thumbnail: str | None
    """Data URI; None if there is no image."""
    warnings: list[str]


@dataclass(frozen=True)
class Setting:
    """A field of the job's spec."""

    name: str
    """Path of the field, such as training.rank."""
    value: str
    default: bool
    """Whether the value is the default."""
    recipe: bool = False
    """Whether the recipe set the value."""


def render(data: ReportData) -> str:
    """Render the report as a single HTML file, which needs no other files and no network."""
    chosen = {prompt: _spread(previews) for prompt, previews in _by_prompt(data).items()}
    count = len(data.base_previews) + len(data.training_images) + sum(map(len, chosen.values()))
    thumbnails = Thumbnails(count)

    def thumbnail(key: str | None) -> str | None:
        content = data.fetch(key) if key else None
        return thumbnails.data_uri(content) if content else None

    prompts = [
        Prompt(
            text,
            [
                Preview(None, thumbnail(data.base_previews.get(text))),
                *(Preview(preview.step, thumbnail(preview.key)) for preview in previews),
            ],
        )
        for text, previews in chosen.items()
    ]
    warnings = image_warnings(data)
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": _bytes, "duration": format_duration}
    return environment.get_template("report.html.jinja").render(
        data=data,
        manifest=data.manifest,
        spec=data.config.spec,
        prompts=prompts,
        training_images=[
            ShownImage(image, thumbnail(image.key), warnings.get(image.key, []))
            for image in data.training_images
        ],
        dataset_warnings=dataset_warnings(data),
        assessment=assess(data),
        snippet=_snippet(data),
        columns=_columns(prompts),
        charts=_charts(data),
        settings=list(_settings(data.config)),
        steps_per_second=_steps_per_second(data),
        lowest_energy=_lowest_energy(data.layers),
    )


def _snippet(data: ReportData) -> str:
    key = data.manifest.adapter.uri.rpartition("/")[2]
    return usage_snippet(data.config.base_model, data.config.spec.concept, key, data.manifest.embeddings)


def _columns(prompts: Sequence[Prompt]) -> list[int | None]:
    """Return the steps of all previews, in order, after None for the base previews."""
    steps = sorted(
        {preview.step for prompt in prompts for preview in prompt.previews if preview.step is not None}
    )
    return [None, *steps]


def _by_prompt(data: ReportData) -> dict[str, list[PreviewStatus]]:
    grouped: dict[str, list[PreviewStatus]] = {}
    for preview in data.manifest.previews:
        grouped.setdefault(preview.prompt, []).append(preview)
    return grouped


def _spread(previews: Sequence[PreviewStatus]) -> list[PreviewStatus]:
    """Select at most `MAX_PREVIEWS` evenly spread previews."""
    last = len(previews) - 1
    places = {round(last * index / (MAX_PREVIEWS - 1)) for index in range(MAX_PREVIEWS)}
    return [preview for place, preview in enumerate(previews) if place in places]


def _charts(data: ReportData) -> list[charts.Chart]:
    """Lay out the charts of scores (if measured), loss, learning rate and gradient norm."""
    rows = [asdict(record) for record in data.records]

    def points(name: str) -> list[charts.Point]:
        return [(row["step"], row[name]) for row in rows]

    loss = points("loss")
    lines = [("faint", "each step", loss), ("strong", "smoothed", charts.smooth(loss))]
    scores = []
    if any(record.score is not None for record in data.records):
        # Only measured steps, because a line has gaps at steps without a value.
        measured = [row for row in rows if row["score"] is not None]
        lines_of = [
            ("strong", "likeness", [(row["step"], row["likeness"]) for row in measured]),
            ("faint", "fidelity", [(row["step"], row["fidelity"]) for row in measured]),
        ]
        scores = [charts.line_chart("Likeness and prompt fidelity", lines_of, from_zero=True)]
    held_out = [point for point in points("held_out_loss") if point[1] is not None]
    if held_out:
        lines.append(("held", "held-out images", held_out))
    return [
        *scores,
        charts.line_chart("Loss", lines, from_zero=True),
        charts.line_chart("Learning rate", [("strong", "", points("learning_rate"))], from_zero=True),
        charts.line_chart("Gradient norm", [("strong", "", points("gradient_norm"))], from_zero=True),
    ]


def _settings(config: TrainConfig) -> Iterator[Setting]:
    """List every field of a spec, whether it has its default value, and whether the recipe set it."""
    required = config.spec.to_wire()
    minimal = parse_spec({name: required[name] for name in ("dataset", "concept")})
    defaults = dict(_flat(minimal.to_wire()))
    values = dict(_flat(required))
    by_recipe: set[str] = set()
    if config.recipe is not None:
        values["training.recipe"] = str(config.recipe.kind)
        by_recipe = {f"training.{path}" for path in config.recipe.fields}
    for name, value in values.items():
        yield Setting(name, value, default=defaults.get(name) == value, recipe=name in by_recipe)


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """List the path and value of every field of a nested mapping."""
    for name, child in value.items():
        if isinstance(child, dict) and child:
            yield from _flat(child, f"{before}{name}.")
        else:
            yield f"{before}{name}", _text(child)


def _text(value: Any) -> str:
    """Format a setting as in YAML, without quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "–"
    return str(value) if value not in ("", {}) else "–"


def _steps_per_second(data: ReportData) -> float:
    """Compute the steps per second without the first tenth of the steps, which includes warm-up; 0 if unknown."""
    steady = [record.seconds for record in data.records[len(data.records) // 10 :]]
    return 1 / fmean(steady) if steady and fmean(steady) else 0.0


def _lowest_energy(
    layers: Mapping[str, Any] | None, count: int = 10
) -> list[tuple[str, Mapping[str, float]]]:
    """Return the layers of which an extracted adapter keeps the smallest share of the energy, with their figures."""
    grouped: dict[str, Mapping[str, float]] = layers["layers"] if layers else {}
    return sorted(grouped.items(), key=lambda item: item[1]["energyKept"])[:count]


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
