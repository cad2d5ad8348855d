"""The reference pages, made from the models and the metrics that the code itself works with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from prometheus_client.metrics import MetricWrapperBase

import lora_operator.metrics as operator_metrics
from lora_api.base import Model
from lora_api.job import JobSpec
from lora_api.profile import Profile
from lora_api.status import JobStatus
from lora_trainer.progress import Reporter

ROOT = Path(__file__).parents[2]
HEAD = "| Field | Type | Default | Range | Meaning |\n|---|---|---|---|---|\n"

Schema = Mapping[str, Any]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages; called by MkDocs."""
    for name, make in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    return files


def job() -> str:
    about = "What a `LoraTrainingJob` can say. Only what is *required* has to be said."
    return f"# The job's `spec`\n\n{about}\n\n{describe(JobSpec, 'spec')}"


def status() -> str:
    about = "What the operator says of a job. Nothing else writes it."
    return f"# The job's `status`\n\n{about}\n\n{describe(JobStatus, 'status')}"


def profile() -> str:
    about = "What an administrator writes, by name under `profiles` ([how](../how-to/profiles.md))."
    return f"# Profiles\n\n{about}\n\n{describe(Profile, 'profile')}"


def values() -> str:
    return (ROOT / "charts/lora-training-operator/README.md").read_text().replace("../../docs/", "../")


def describe(model: type[Model], name: str) -> str:
    """Every field of a model and of the models in it: a table each, under its path."""
    schema = model.model_json_schema(by_alias=True)
    return "\n".join(sections(name, schema, schema.get("$defs", {})))


def sections(path: str, schema: Schema, definitions: Mapping[str, Schema]) -> Iterator[str]:
    """A table of an object's own fields, then those of the objects in it."""
    rows, inner = [], []
    for name, given in schema.get("properties", {}).items():
        field = resolve(given, definitions)
        target, below = reached(f"{path}.{name}", field, definitions)
        inner += [(target, variant) for variant in below]
        required = name in schema.get("required", [])
        rows.append(
            f"| `{name}` | {kind(field, definitions)} | {default(field, required, bool(below))} "
            f"| {bounds(field)} | {cell(given.get('description') or field.get('description', ''))} |\n"
        )
    about = schema.get("description", "")
    yield f"## `{path}`\n\n" + (f"{about}\n\n" if about else "") + HEAD + "".join(rows)
    for target, variant in inner:
        yield from sections(target, variant, definitions)


def resolve(field: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """A field with its `$ref` filled in and without the null of an optional one."""
    if "anyOf" in field:
        some = next(option for option in field["anyOf"] if option.get("type") != "null")
        field = {**{key: value for key, value in field.items() if key != "anyOf"}, **some}
    if "$ref" in field:
        return {**definitions[field["$ref"].rpartition("/")[2]], **field}
    return field


def reached(path: str, field: Schema, definitions: Mapping[str, Schema]) -> tuple[str, list[Schema]]:
    """The objects that a field, its items or its values are, and the path under which they are."""
    if isinstance(field.get("additionalProperties"), dict):
        return reached(f"{path}.NAME", resolve(field["additionalProperties"], definitions), definitions)
    if field.get("type") == "array":
        return reached(f"{path}[]", resolve(field["items"], definitions), definitions)
    if "oneOf" in field:
        return path, [resolve(option, definitions) for option in field["oneOf"]]
    return path, [field] if "properties" in field else []


def kind(field: Schema, definitions: Mapping[str, Schema]) -> str:
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
    if "x-kubernetes-validations" in field and field.get("type") == "string":
        return "number in quotes"
    return "object" if "oneOf" in field else str(field.get("type", "any"))


def default(field: Schema, required: bool, is_object: bool) -> str:
    if required:
        return "*required*"
    value = field.get("default")
    if is_object or value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "empty" if value in ("", [], {}) else f"`{value}`"


def bounds(field: Schema) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    words = [rule["message"].removeprefix("must be ") for rule in field.get("x-kubernetes-validations", [])]
    if low is not None or high is not None:
        words.append(f"{low:,} to {high:,}" if low is not None and high is not None else f"from {low}")
    if "multipleOf" in field:
        words.append(f"a multiple of {field['multipleOf']}")
    if "maxLength" in field and "x-kubernetes-validations" not in field:
        words.append(f"up to {field['maxLength']} characters")
    if "maxItems" in field:
        words.append(f"up to {field['maxItems']} items")
    return ", ".join(words)


def cell(text: str) -> str:
    """Text that stays in its cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def metrics() -> str:
    """Every metric of the operator and of a training, with its labels."""
    reporter = Reporter("127.0.0.1", 0)
    reporter.close()
    return (
        "# Metrics\n\nOf the operator, at `/metrics`:\n\n"
        + _table(vars(operator_metrics))
        + "\nOf a step, at its pod's `/metrics`:\n\n"
        + _table(vars(reporter))
    )


def _table(names: Mapping[str, Any]) -> str:
    """The metrics among some variables."""
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
"""What makes each page, by its path among the docs."""
