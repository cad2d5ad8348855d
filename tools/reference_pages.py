"""Generation of reference pages from the models and the metrics of the code. It is run by `make reference`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

import lora_operator.metrics as operator_metrics
from lora_api.base import REAL_PATTERN, Model
from lora_api.job import JobSpec
from lora_api.profile import Profile
from lora_api.status import JobStatus
from lora_trainer.progress import Reporter

ROOT = Path(__file__).parents[1]
HEAD = "| Field | Type | Default | Range | Meaning |\n|---|---|---|---|---|\n"

Schema = Mapping[str, Any]


def job() -> str:
    """Return the page of the fields of a job's spec."""
    about = "The fields of a `LoraTrainingJob`. Only those marked *required* must be set."
    return f"# The job's `spec`\n\n{about}\n\n{describe(JobSpec, 'spec')}"


def status() -> str:
    """Return the page of the fields of a job's status."""
    about = "The status of a `LoraTrainingJob`. Only the operator writes it."
    return f"# The job's `status`\n\n{about}\n\n{describe(JobStatus, 'status')}"


def profile() -> str:
    """Return the page of the fields of a profile."""
    about = "The fields of a profile, which an administrator defines by name under `profiles` ([guide](../how-to/profiles.md))."
    return f"# Profiles\n\n{about}\n\n{describe(Profile, 'profile')}"


def values() -> str:
    """Return the page of the chart's values: the chart's README, with its links to the docs."""
    return (ROOT / "charts/lora-training-operator/README.md").read_text().replace("../../docs/", "../")


def describe(model: type[Model], name: str) -> str:
    """Return a section with a table of fields for a model and for each model in it."""
    schema = model.model_json_schema(by_alias=True)
    return "\n".join(sections(name, schema, schema.get("$defs", {})))


def sections(path: str, schema: Schema, definitions: Mapping[str, Schema]) -> Iterator[str]:
    """Yield the section of an object, then those of the objects in it."""
    rows, inner = [], []
    for name, reference in schema.get("properties", {}).items():
        field = resolve(reference, definitions)
        target, children = child_objects(f"{path}.{name}", field, definitions)
        inner += [(target, variant) for variant in children]
        required = name in schema.get("required", [])
        rows.append(
            f"| `{name}` | {kind(field, definitions)} | {default(field, required, bool(children))} "
            f"| {bounds(field)} | {cell(reference.get('description') or field.get('description', ''))} |\n"
        )
    about = schema.get("description", "")
    yield f"## `{path}`\n\n" + (f"{about}\n\n" if about else "") + HEAD + "".join(rows)
    for target, variant in inner:
        yield from sections(target, variant, definitions)


def resolve(field: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """Return a field with its `$ref` resolved and without the null of an optional field."""
    if "anyOf" in field:
        non_null = next(option for option in field["anyOf"] if option.get("type") != "null")
        field = {**{key: value for key, value in field.items() if key != "anyOf"}, **non_null}
    if "$ref" in field:
        return {**definitions[field["$ref"].rpartition("/")[2]], **field}
    return field


def child_objects(path: str, field: Schema, definitions: Mapping[str, Schema]) -> tuple[str, list[Schema]]:
    """Return the path and the schemas of the objects in a field: the field itself, its items or its values."""
    if isinstance(field.get("additionalProperties"), dict):
        return child_objects(f"{path}.NAME", resolve(field["additionalProperties"], definitions), definitions)
    if field.get("type") == "array":
        return child_objects(f"{path}[]", resolve(field["items"], definitions), definitions)
    if "oneOf" in field:
        return path, [resolve(option, definitions) for option in field["oneOf"]]
    return path, [field] if "properties" in field else []


def kind(field: Schema, definitions: Mapping[str, Schema]) -> str:
    """Return the type of a field, or its values if they are a fixed set."""
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of {kind(resolve(field['items'], definitions), definitions)}"
    if isinstance(field.get("additionalProperties"), dict):
        return f"map of {kind(resolve(field['additionalProperties'], definitions), definitions)}"
    if field.get("format") == "date-time":
        return "time"
    if field.get("pattern") == REAL_PATTERN:
        return "number in quotes"
    return "object" if "oneOf" in field else str(field.get("type", "any"))


def default(field: Schema, required: bool, is_object: bool) -> str:
    """Return the default of a field; empty for an object, whose fields have their own."""
    if required:
        return "*required*"
    value = field.get("default")
    if is_object or value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "empty" if value in ("", [], {}) else f"`{value}`"


def bounds(field: Schema) -> str:
    """Return the limits of a field's value, and the rules for its text."""
    low, high = field.get("minimum"), field.get("maximum")
    words = [rule["message"].removeprefix("must be ") for rule in field.get("x-kubernetes-validations", [])]
    if low is not None or high is not None:
        words.append(f"{low:,} to {high:,}" if low is not None and high is not None else f"from {low}")
    if "multipleOf" in field:
        words.append(f"a multiple of {field['multipleOf']}")
    if "maxLength" in field and field.get("pattern") != REAL_PATTERN:
        words.append(f"up to {field['maxLength']} characters")
    if "maxItems" in field:
        words.append(f"up to {field['maxItems']} items")
    return ", ".join(words)


def cell(text: str) -> str:
    """Return text in a form that fits into a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def metrics() -> str:
    """Return the page of all metrics of the operator and of the stages, with their labels."""
    reporter = Reporter("127.0.0.1", 0)
    reporter.close()
    return (
        "# Metrics\n\nThe operator serves these metrics at `/metrics`:\n\n"
        + _table(vars(operator_metrics))
        + "\nThe pod of a stage serves these metrics at `/metrics`:\n\n"
        + _table(vars(reporter))
    )


def _table(names: Mapping[str, Any]) -> str:
    """Return a table of the metrics among some variables."""
    rows = []
    for collector in names.values():
        if not isinstance(collector, MetricWrapperBase):
            continue
        labels = ", ".join(f"`{name}`" for name in collector._labelnames)
        for family in collector.describe():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append(f"| `{name}` | {family.type} | {labels} | {cell(family.documentation)} |\n")
    return "| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n" + "".join(rows)


PAGES = {
    "reference/job.md": job,
    "reference/status.md": status,
    "reference/profile.md": profile,
    "reference/metrics.md": metrics,
    "reference/values.md": values,
}
"""Functions that return a page, by the page's path in the docs."""


if __name__ == "__main__":
    for path, make in PAGES.items():
        (ROOT / "docs" / path).write_text(make())
