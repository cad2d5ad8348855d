"""Whatever a job's author writes into any text of the spec, nothing of a child changes but what they may choose."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from lora_api.job import InvalidResourceError, JobSpec, parse_spec
from lora_operator import names
from lora_operator.decide import StartAnnotation, StartTraining
from lora_operator.decide.admission import find_problem
from lora_operator.manifests import CLUSTER, build_job, build_stage_config
from lora_operator.settings import Images
from tests.support.builders import CAPTIONS_SHA, HASH, PROFILE, snapshot, wire_spec

STARTS = [StartAnnotation(1), StartTraining(1, CAPTIONS_SHA, HASH)]
IMAGES = Images("annotate:1", "train:1")
HOSTILE = [
    "evil",
    "evil.example:9000",
    "evil.example/image:latest",
    "$(touch /tmp/evil)",
    "evil; rm -rf / #",
    "../../var/run/lora/evil",
    "evil\n- name: evil",
    "{{evil}} %s ${evil}",
    "9evil",
    "1G",
    "f" * 64,
]
CHOSEN = [
    ("spec", "template", "metadata", "annotations", names.STAGE_CONFIG),
    ("metadata", "labels", "kueue.x-k8s.io/queue-name"),
    ("spec", "template", "spec", "containers", 0, "resources"),
    *(
        ("spec", "template", "spec", field)
        for field in ("nodeSelector", "tolerations", "priorityClassName", "runtimeClassName")
    ),
]
"""What an author may choose, and where it goes."""

Path = tuple[str | int, ...]


def texts(schema: dict[str, Any], definitions: dict[str, Any], path: Path = ()) -> Iterator[Path]:
    """The path of every field that takes a text, of the items of lists and maps too."""
    if "$ref" in schema:
        yield from texts(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions, path)
    for part in [*schema.get("anyOf", ()), *schema.get("allOf", ())]:
        yield from texts(part, definitions, path)
    if schema.get("type") == "string":
        yield path
    for name, field in schema.get("properties", {}).items():
        yield from texts(field, definitions, (*path, name))
    if isinstance(schema.get("items"), dict):
        yield from texts(schema["items"], definitions, (*path, 0))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from texts(schema["additionalProperties"], definitions, (*path, "example.com/key"))


def fields() -> list[Path]:
    schema = JobSpec.model_json_schema(by_alias=True)
    return sorted(set(texts(schema, schema["$defs"])), key=str)


def put(tree: Any, path: Path, value: str) -> None:
    """Set a value, with whatever is missing on the way."""
    *way, last = path
    for step, following in zip(way, path[1:], strict=True):
        if isinstance(tree, list):
            if not tree:
                tree.append({})
            tree = tree[0]
        else:
            tree = tree.setdefault(step, [] if following == 0 else {})
    if isinstance(tree, list):
        tree[:] = [value]
    else:
        tree[last] = value


def children(spec: dict[str, Any]) -> list[dict[str, Any]]:
    found = snapshot(spec=spec)
    return [build_job(found, build_stage_config(found, start, CLUSTER), IMAGES) for start in STARTS]


def cut(tree: Any, path: Path) -> Any:
    """Take a part out; None where there is none."""
    *way, last = path
    for step in way:
        tree = tree[step]
    return tree.pop(last, None)


def fixed(child: dict[str, Any]) -> dict[str, Any]:
    """A child without what its author may choose: of the stage's file everything but the spec stays."""
    rest = copy.deepcopy(child)
    config = json.loads(cut(rest, CHOSEN[0]))
    for path in CHOSEN[1:]:
        cut(rest, path)
    del config["spec"]
    return rest | {"config": config}


def accepted(path: Path) -> list[dict[str, Any]]:
    """Specs with a hostile value at a path, as far as they are let in."""
    found = []
    for value in HOSTILE:
        spec = wire_spec(annotation={"mode": "LLM"})
        put(spec, path, value)
        try:
            parsed = parse_spec(spec)
        except InvalidResourceError:
            continue
        if find_problem(parsed, "studio", PROFILE) is None:
            found.append(spec)
    return found


def test_the_fields_are_found() -> None:
    found = fields()
    for path in [
        ("concept", "token"),
        ("training", "preview", "prompts", 0),
        ("scheduling", "nodeSelector", "example.com/key"),
        ("scheduling", "tolerations", 0, "key"),
        ("resources", "train", "gpuResource"),
    ]:
        assert path in found
    let_in = [path for path in found if accepted(path)]
    assert len(let_in) >= 12, "hostile values that get through are what this is about"


@pytest.mark.parametrize("path", fields(), ids=lambda path: ".".join(str(step) for step in path))
def test_a_hostile_text_reaches_nothing_that_runs(path: Path) -> None:
    plain = [fixed(child) for child in children({"annotation": {"mode": "LLM"}})]
    for spec in accepted(path):
        assert [fixed(child) for child in children(spec)] == plain


def test_resources_are_quantities_and_counts_alone() -> None:
    for path in [path for path in fields() if path[0] == "resources"]:
        for spec in accepted(path):
            for child in children(spec):
                resources = child["spec"]["template"]["spec"]["containers"][0]["resources"]
                assert set(resources) <= {"requests", "limits"}
                assert not any(
                    str(value).strip("0123456789.mkMGTi") for value in resources["limits"].values()
                )
