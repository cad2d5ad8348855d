"""Values: unknown ones are refused with their name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support.helm import CHART, helm, render
from tools.chart.generate import generated, values_table

DIGEST = "sha256:" + "0" * 64
REFUSED = [
    ("unknown", {"extraEnv": []}, "extraEnv"),
    ("unknown in a map", {"image": {"tagg": "x"}}, "tagg"),
    ("a digest that is none", {"image": {"digest": "latest"}}, "digest"),
    ("a word for a number", {"replicas": "two"}, "replicas"),
    ("a negative number", {"replicas": -1}, "replicas"),
    ("a word for a switch", {"crds": {"keep": "yes"}}, "keep"),
    ("a scope that is none", {"rbac": {"scope": "everything"}}, "scope"),
    ("one string for a list", {"watchNamespaces": "studio"}, "watchNamespaces"),
    ("a namespace that is none", {"watchNamespaces": ["Studio_1"]}, "watchNamespaces"),
    ("a resource that is none", {"resources": {"limit": {}}}, "limit"),
    ("a quantity that is none", {"resources": {"limits": {"memory": "lots"}}}, "memory"),
    ("a toleration with a typo", {"tolerations": [{"kee": "x"}]}, "kee"),
    ("an affinity with a typo", {"affinity": {"nodeAfinity": {}}}, "nodeAfinity"),
    ("a port that is none", {"networkPolicy": {"store": {"ports": [70000]}}}, "ports"),
    ("a peer with a typo", {"networkPolicy": {"store": {"to": [{"ipblock": {}}]}}}, "ipblock"),
    ("a time that is none", {"serviceMonitor": {"interval": "often"}}, "interval"),
    ("a profile's unknown field", {"profiles": {"default": {"secret": "x"}}}, "secret"),
    ("a profile without a store", {"profiles": {"other": {"models": {}}}}, "store"),
    (
        "a price that is a number",
        {"profiles": {"default": {"llm": {"prices": {"m": {"input": 1, "output": 2}}}}}},
        "input",
    ),
    ("a model of no source", {"profiles": {"default": {"models": {"m": {"source": "disk"}}}}}, "models"),
    ("an LLM service of none", {"profiles": {"default": {"llm": {"provider": "acme"}}}}, "provider"),
    ("snake case", {"profiles": {"default": {"store": {"secret_name": "x"}}}}, "secret_name"),
    ("no profile at all", {"profiles": {"default": None}}, "profiles"),
    ("a claim's odd mode", {"modelCache": {"accessModes": ["ReadMostly"]}}, "accessModes"),
    ("an address that is none", {"trialStore": {"clusterIP": "store.example.com"}}, "clusterIP"),
    ("a name in capitals", {"fullnameOverride": "Lora"}, "fullnameOverride"),
]


@pytest.mark.parametrize(("values", "word"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_is_unknown_or_ill_typed_is_refused(values: Any, word: str) -> None:
    ran = helm("template", "lora", str(CHART), values=values, check=False)
    assert ran.returncode != 0
    assert "don't meet the specifications of the schema" in ran.stderr
    assert word in ran.stderr


INCOMPLETE = [
    ({"rbac": {"scope": "namespaced"}}, "rbac.scope: namespaced needs watchNamespaces"),
    (
        {
            "rbac": {"scope": "namespaced"},
            "watchNamespaces": ["studio"],
            "metrics": {"authentication": "Token"},
        },
        "metrics.authentication: Token needs rbac.scope: cluster",
    ),
    ({"demo": {"enabled": True, "profile": "nope"}}, 'there is no profile "nope"'),
    ({"demo": {"enabled": True, "ingress": {"enabled": True}}}, "needs demo.ingress.host"),
    ({"trialStore": {"enabled": True}, "watchNamespaces": ["studio"]}, "default is none of watchNamespaces"),
    ({"modelCache": {"enabled": True}}, "needs modelCache.namespaces"),
    ({"modelCache": {"enabled": True, "namespaces": ["studio"]}}, "{persistentVolumeClaim: lora-models}"),
]


@pytest.mark.parametrize(("values", "words"), INCOMPLETE, ids=[words for _, words in INCOMPLETE])
def test_values_without_the_values_that_they_need_are_refused(values: Any, words: str) -> None:
    ran = helm("template", "lora", str(CHART), values=values, check=False)
    assert ran.returncode != 0
    assert words in ran.stderr


def test_the_values_that_the_docs_show_are_values() -> None:
    text = (CHART.parents[1] / "docs/how-to/install.md").read_text()
    (shown,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert render(yaml.safe_load(shown))


def test_the_trial_runs_the_images_that_make_builds() -> None:
    values = yaml.safe_load((CHART.parents[1] / "examples/quickstart/values.yaml").read_text())
    (deployment,) = [
        found
        for found in render(values)
        if found["kind"] == "Deployment" and found["metadata"]["name"] == "lora"
    ]
    (box,) = deployment["spec"]["template"]["spec"]["containers"]
    named = {item["value"] for item in box["env"] if item["name"].endswith("_IMAGE")} | {box["image"]}
    assert named == set(re.findall(r" build -t (\S+)", (CHART.parents[1] / "Makefile").read_text()))
    (loaded,) = re.findall(
        r"kind load docker-image (.*)", (CHART.parents[1] / "docs/how-to/install.md").read_text()
    )
    assert named == set(loaded.split())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "kubectl apply -f job.yaml"),
        ({"trialStore": {"enabled": True}}, "kubectl apply -f examples/quickstart/job.yaml"),
        ({"demo": {"enabled": True}}, "kubectl port-forward -n lora-system service/lora-demo 8501:80"),
        ({}, "name their namespaces in networkPolicy.jobNamespaces"),
        ({"networkPolicy": {"enabled": False}}, "networkPolicy.enabled is false"),
        ({}, "networkPolicy.metricsFrom: /metrics may be read by any pod"),
        ({}, "networkPolicy.apiServer.to: the operator may connect to any address on ports 443, 6443"),
        (
            {"networkPolicy": {"dns": {"to": []}}},
            "networkPolicy.dns.to: pods may connect to any address on port 53",
        ),
        (
            {"profiles": {"default": {"store": {"endpoint": "s3.example.com"}}}},
            "networkPolicy.store.to: pods of jobs may connect to any address on port 443",
        ),
    ],
)
def test_the_notes_say_what_to_do_next(values: Any, words: str) -> None:
    where = ("--namespace", "lora-system", "--dry-run=client")
    assert words in helm("install", "lora", str(CHART), *where, values=values).stdout


def test_the_notes_have_no_warning_for_closed_policies() -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "x"}}}]
    policy = {"jobNamespaces": ["studio"], "apiServer": {"to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]}}
    where = ("--namespace", "lora-system", "--dry-run=client")
    for values in (
        {"networkPolicy": policy | {"metricsFrom": peers}},
        {"networkPolicy": policy, "metrics": {"authentication": "Token"}},
    ):
        assert "WARNING" not in helm("install", "lora", str(CHART), *where, values=values).stdout


def test_the_schema_leaves_no_map_open() -> None:
    """Every object of the schema lists its fields, or has a schema for its entries."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    # Kubernetes' own selectors and affinities end in {}: the API server checks these
    open_maps = [
        path
        for path, part in parts(schema)
        if part.get("type") == "object" and "additionalProperties" not in part
    ]
    assert open_maps == ["/properties/global"]


def parts(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        yield path, schema
        for name, child in schema.items():
            yield from parts(child, f"{path}/{name}")
    elif isinstance(schema, list):
        for index, child in enumerate(schema):
            yield from parts(child, f"{path}/{index}")


def test_every_field_of_the_schema_is_in_values() -> None:
    """Helm itself checks the opposite: that the defaults match the schema."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert list(missing(schema, values)) == ["global"]


def missing(schema: dict[str, Any], values: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, child in schema.get("properties", {}).items():
        if name not in values:
            yield f"{path}{name}"
        elif isinstance(values[name], dict) and values[name]:
            yield from missing(child, values[name], f"{path}{name}.")


def test_what_is_generated_is_up_to_date() -> None:
    for path, content in generated().items():
        assert path.read_bytes() == content, f"{path.name}: run `make chart`"


def test_the_table_of_values_is_made_from_the_comments() -> None:
    table = values_table("# -- One.\n# Two.\na: {b: 1}\nc:\n  # -- Three.\n  d: x\n  e: []\n")
    assert table.splitlines()[2:] == [
        '| `a` | `{"b": 1}` | One. Two. |',
        '| `c.d` | `"x"` | Three. |',
        "| `c.e` | `[]` |  |",
    ]
