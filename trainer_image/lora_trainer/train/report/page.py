"""The page: facts laid out for the template, which escapes whatever a person or a model wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lora_api.job import JobSpec, parse_spec
from lora_api.status import PreviewStatus

from . import charts
from .facts import Facts
from .pictures import Shown, Thumbnails

MOST_STEPS = 8
"""So many previews of a prompt are shown; of more, these are spread evenly and end with the last."""


@dataclass(frozen=True)
class Preview:
    """A picture of a prompt; without a step, the base model's."""

    step: int | None
    picture: str | None


@dataclass(frozen=True)
class Prompt:
    text: str
    previews: list[Preview]


@dataclass(frozen=True)
class Trained:
    shown: Shown
    picture: str | None


@dataclass(frozen=True)
class Setting:
    name: str
    value: str
    default: bool


def render(facts: Facts) -> str:
    """The report as HTML that needs neither a network nor another file."""
    chosen = {prompt: _spread(previews) for prompt, previews in _by_prompt(facts).items()}
    count = len(facts.bases) + len(facts.trained_on) + sum(map(len, chosen.values()))
    thumbnails = Thumbnails(count)

    def picture(key: str | None) -> str | None:
        data = facts.fetch(key) if key else None
        return thumbnails.data_uri(data) if data else None

    prompts = [
        Prompt(
            text,
            [
                Preview(None, picture(facts.bases.get(text))),
                *(Preview(preview.step, picture(preview.key)) for preview in previews),
            ],
        )
        for text, previews in chosen.items()
    ]
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": _bytes, "duration": _duration}
    return environment.get_template("report.html.jinja").render(
        facts=facts,
        manifest=facts.manifest,
        spec=facts.config.spec,
        prompts=prompts,
        trained_on=[Trained(shown, picture(shown.key)) for shown in facts.trained_on],
        charts=_charts(facts),
        settings=list(_settings(facts.config.spec)),
        rate=_rate(facts),
        weakest=_weakest(facts.layers),
    )


def _by_prompt(facts: Facts) -> dict[str, list[PreviewStatus]]:
    found: dict[str, list[PreviewStatus]] = {}
    for preview in facts.manifest.previews:
        found.setdefault(preview.prompt, []).append(preview)
    return found


def _spread(previews: Sequence[PreviewStatus]) -> list[PreviewStatus]:
    last = len(previews) - 1
    places = {round(last * index / (MOST_STEPS - 1)) for index in range(MOST_STEPS)}
    return [preview for place, preview in enumerate(previews) if place in places]


def _charts(facts: Facts) -> list[charts.Chart]:
    """The loss, the learning rate, and the gradient's norm."""
    rows = [asdict(record) for record in facts.records]

    def points(name: str) -> list[charts.Point]:
        return [(row["step"], row[name]) for row in rows]

    loss = points("loss")
    lines = [("faint", "each step", loss), ("strong", "smoothed", charts.smooth(loss))]
    return [
        charts.draw("Loss", lines, from_zero=True),
        charts.draw("Learning rate", [("strong", "", points("learning_rate"))], from_zero=True),
        charts.draw("Gradient norm", [("strong", "", points("gradient_norm"))], from_zero=True),
    ]


def _settings(spec: JobSpec) -> Iterator[Setting]:
    """Every field of a spec with whether it stands at its default."""
    required = spec.to_wire()
    least = parse_spec({name: required[name] for name in ("dataset", "concept")})
    defaults = dict(_flat(least.to_wire()))
    for name, value in _flat(spec.to_wire()):
        yield Setting(name, value, default=defaults.get(name) == value)


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, child in value.items():
        if isinstance(child, dict) and child:
            yield from _flat(child, f"{before}{name}.")
        else:
            yield f"{before}{name}", _words(child)


def _words(value: Any) -> str:
    """A setting as YAML would have it, without its quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "–"
    return str(value) if value not in ("", {}) else "–"


def _rate(facts: Facts) -> float:
    """Steps per second, without the first tenth, which warms up."""
    settled = [record.seconds for record in facts.records[len(facts.records) // 10 :]]
    return 1 / fmean(settled) if settled and fmean(settled) else 0.0


def _weakest(layers: Mapping[str, Any] | None, count: int = 10) -> list[tuple[str, Mapping[str, float]]]:
    """The layers of which an extracted adapter keeps the least."""
    found: dict[str, Mapping[str, float]] = layers["layers"] if layers else {}
    return sorted(found.items(), key=lambda item: item[1]["energyKept"])[:count]


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
