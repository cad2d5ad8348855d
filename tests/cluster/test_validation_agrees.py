"""`lora validate` and the API server accept and refuse the same manifests."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lora_api import API_VERSION, GROUP, KIND, PLURAL, VERSION
from lora_cli.exits import Exit
from lora_cli.job_file import InvalidManifestError, parse_job
from lora_cli.main import app
from lora_cli.manifests.checks import find_problems, schema_at
from lora_cli.manifests.reader import resolve_scalar
from lora_cli.manifests.writer import dump_yaml
from tests.support.builders import wire_spec
from tests.support.cluster.harness import NamespaceClient
from tests.support.cluster.plane import ControlPlane

KUBECTL = str(Path(sys.executable).with_name("kubectl"))
PLAIN = [
    "1e-4",
    "0.0001",
    "1e4",
    "5e2",
    "16.0",
    "1_000",
    "0x1F",
    "0o17",
    "017",
    "08",
    "0b101",
    "+5",
    "-5",
    ".5",
    "5.",
    "-.5",
    "1.",
    "1e400x",
    "12:30",
    "12:30:45",
    "1.2.3",
    "1_0.5",
    "y",
    "Y",
    "n",
    "N",
    "yes",
    "Yes",
    "no",
    "No",
    "on",
    "On",
    "off",
    "Off",
    "true",
    "True",
    "TRUE",
    "false",
    "null",
    "~",
    "Null",
    "nan",
    ".5e3",
    "2020-01-01",
    "2020-01-01T00:00:00Z",
    "+.5",
    "--5",
    "0x",
    "0b2",
    "1e",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e21",
    "1e20",
    "1e22",
    "123456789012345678901234567890",
    "yeS",
    "tRue",
    "0.1",
    "00",
    "0",
    "-0",
    "1e+2",
    "1E-3",
    "0.30000000000000004",
    "e5",
    "_1",
    "1__0",
    "=",
    "<",
]
TOUCHED = ("training", "dataset", "concept", "annotation", "output", "resources", "runPolicy", "scheduling")


def kubectl(plane: ControlPlane, *arguments: str, stdin: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [KUBECTL, *arguments, "-f", "-"],
        input=stdin,
        env={**os.environ, "KUBECONFIG": str(plane.kubeconfig)},
        capture_output=True,
        text=True,
        check=False,
    )


def manifest(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "statue"},
        "spec": wire_spec(**spec),
    }


def test_unquoted_text_has_kubectls_meaning(plane: ControlPlane) -> None:
    lines = [f"  s{index}: {text}" for index, text in enumerate(PLAIN)]
    document = f"apiVersion: {API_VERSION}\nkind: {KIND}\nmetadata: {{name: x}}\nspec:\n" + "\n".join(lines)
    ran = kubectl(plane, "create", "--dry-run=client", "--validate=false", "-o", "json", stdin=document)
    assert ran.returncode == 0, ran.stderr
    meant = json.loads(ran.stdout)["spec"]
    read = {text: resolve_scalar(text) for text in PLAIN}
    assert read == {text: meant.get(f"s{index}") for index, text in enumerate(PLAIN)}


TEXTS = {
    "snake_case": ("maxSteps: 5", "max_steps: 5"),
    "misspelt": ("maxSteps: 5", "maxStep: 5"),
    "unquoted real": ("maxSteps: 5", "learningRate: 1e-4"),
    "unquoted decimal": ("maxSteps: 5", "learningRate: 0.0001"),
    "quoted real": ("maxSteps: 5", "learningRate: '1e-4'"),
    "quoted integer": ("maxSteps: 5", "maxSteps: '5'"),
    "whole float": ("maxSteps: 5", "maxSteps: 5.0"),
    "octal": ("maxSteps: 5", "maxSteps: 0o17"),
    "duplicate key": ("maxSteps: 5", "maxSteps: 5\n    maxSteps: 6"),
    "duplicate section": ("training:", "training: {}\n  training:"),
    "null": ("maxSteps: 5", "maxSteps:"),
    "null section": ("training:\n    maxSteps: 5", "training:"),
    "null optional": ("maxSteps: 5", "seed:"),
    "name": ("name: statue", "name: X_y"),
    "name with a slash": ("name: statue", "name: ../../x"),
    "no name": ("name: statue", "labels: {}"),
    "number for a name": ("name: statue", "name: 12"),
    "yes for a word": ("token: CUS", "token: yes"),
    "number for a word": ("token: CUS", "token: 12"),
    "label": ("name: statue", "name: statue\n  labels: {a: b}"),
    "label value": ("name: statue", "name: statue\n  labels: {a: 'b c'}"),
    "label number": ("name: statue", "name: statue\n  labels: {a: 1}"),
    "label key": ("name: statue", "name: statue\n  labels: {'a b': c}"),
    "unknown metadata": ("name: statue", "name: statue\n  lables: {a: b}"),
    "unknown top": ("spec:", "spce: {}\nspec:"),
    "kind": ("kind: LoraTrainingJob", "kind: LoRATrainingJob"),
    "version": ("v1alpha1", "v1"),
    "anchor": ("maxSteps: 5", "maxSteps: &five 5\n    rank: *five"),
    "merge": ("maxSteps: 5", "<<: {maxSteps: 7}"),
    "list for a map": ("training:\n    maxSteps: 5", "training: [a]"),
    "tab": ("maxSteps: 5", "\tmaxSteps: 5"),
    "trailing document": ("maxSteps: 5", "maxSteps: 5\n---\n"),
    "tag": ("maxSteps: 5", "maxSteps: !!str 5"),
    "status": ("spec:", "status: {phase: Succeeded}\nspec:"),
    "unknown status": ("spec:", "status: {phsae: Succeeded}\nspec:"),
    "unknown field in the status": ("spec:", "status: {captions: {totl: 1}}\nspec:"),
    "annotation key": ("name: statue", "name: statue\n  annotations: {A.b/C: d}"),
    "prefix of a label key": ("name: statue", "name: statue\n  labels: {A.b/C: d}"),
    "finalizer": ("name: statue", "name: statue\n  finalizers: [a.b/c]"),
    "finalizer with a space": ("name: statue", "name: statue\n  finalizers: [a b]"),
    "number for a finalizer": ("name: statue", "name: statue\n  finalizers: [1]"),
    "owner": (
        "name: statue",
        "name: statue\n  ownerReferences: [{apiVersion: v1, kind: Pod, name: x, uid: z}]",
    ),
    "owner without a UID": (
        "name: statue",
        "name: statue\n  ownerReferences: [{apiVersion: v1, kind: Pod, name: x}]",
    ),
    "unknown field of an owner": (
        "name: statue",
        "name: statue\n  ownerReferences: [{apiVersion: v1, kind: Pod, name: x, uid: z, a: b}]",
    ),
    "creation time": ("name: statue", "name: statue\n  creationTimestamp: '2026-01-31T12:00:00.5+01:00'"),
    "creation time without a zone": (
        "name: statue",
        "name: statue\n  creationTimestamp: '2026-01-31T12:00:00'",
    ),
    "no creation time": ("name: statue", "name: statue\n  creationTimestamp: null"),
    "generated name": ("name: statue", "name: statue\n  generateName: statue-"),
    "generated name of capitals": ("name: statue", "name: statue\n  generateName: Statue-"),
    "YAML 1.2": ("apiVersion", "%YAML 1.2\n---\napiVersion"),
    "cross-field": ("maxSteps: 5", "validation: {patience: 2}"),
}


@pytest.mark.parametrize("change", TEXTS.values(), ids=TEXTS.keys())
def test_a_changed_file_gets_the_api_servers_answer(
    cluster: NamespaceClient, change: tuple[str, str]
) -> None:
    text = (
        f"apiVersion: {API_VERSION}\nkind: {KIND}\nmetadata:\n  name: statue\nspec:\n  dataset: {{prefix: a/}}\n"
        "  concept:\n    token: CUS\n    className: statue\n  training:\n    maxSteps: 5\n"
    ).replace(*change)
    refusal = refused_by(cluster, text)
    try:
        parse_job(text, "job.yaml")
        refused = ""
    except InvalidManifestError as error:
        refused = str(error)
    assert bool(refused) == bool(refusal), (refused, refusal)


@pytest.mark.parametrize(
    "name",
    [
        "quoted real",
        "unquoted real",
        "snake_case",
        "misspelt",
        "name",
        "label number",
        "cross-field",
    ],
)
def test_four_commands_give_the_same_answer(
    plane: ControlPlane, cluster: NamespaceClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """`kubectl apply`, `lora validate`, `lora submit` and `lora run`, as users call them.

    A duplicate key is not among the cases: kubectl drops it before the API server, which refuses it, can see it.
    """
    text = (
        f"apiVersion: {API_VERSION}\nkind: {KIND}\nmetadata:\n  name: statue\nspec:\n  dataset: {{prefix: a/}}\n"
        "  concept:\n    token: CUS\n    className: statue\n  annotation: {mode: Template}\n"
        "  resources: {train: {gpus: 8}}\n  training:\n    maxSteps: 5\n"
    ).replace(*TEXTS[name])
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    file = tmp_path / "job.yaml"
    file.write_text(text)
    options = ["apply", "--dry-run=server", "--validate=strict", "-n", cluster.namespace]
    refused = kubectl(plane, *options, stdin=text).returncode != 0
    assert refused == (name != "quoted real")
    for command in (
        ["validate", str(file)],
        ["submit", str(file), "--dry-run", "-n", cluster.namespace],
        ["run", str(file), "--home", str(tmp_path / "home")],
    ):
        code = CliRunner().invoke(app, command).exit_code
        # a valid job ends before anything is written, because this machine does not have eight GPUs
        accepted = Exit.SETUP if command[0] == "run" else Exit.OK
        assert code == (Exit.USAGE if refused else accepted), (command, code)
    assert not (tmp_path / "home").exists()


def test_mutated_manifests_get_the_same_answer(cluster: NamespaceClient) -> None:
    """`find_problems` and the API server refuse the same random changes of valid manifests."""

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(mutations())
    def check(document: dict[str, Any]) -> None:
        problems = [str(problem) for problem in find_problems(document)]
        # PyYAML would leave text such as 1e-4 unquoted, which the API server reads as a number
        refusal = refused_by(cluster, dump_yaml(document))
        assert bool(problems) == bool(refusal), (document, problems, refusal)

    check()


def refused_by(cluster: NamespaceClient, text: str) -> str:
    """Return the message with which the API server refuses a manifest in YAML; empty if it accepts it."""
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{cluster.namespace}/{PLURAL}"
    query = [("dryRun", "All"), ("fieldValidation", "Strict")]
    headers = {"Content-Type": "application/yaml", "Accept": "application/json"}
    request = cluster.api.param_serialize(
        "POST", path, query_params=query, header_params=headers, auth_settings=["BearerToken"]
    )
    method, url, sent, *_ = request
    response = cluster.api.rest_client.request(method, url, headers=sent, body=text)
    return "" if response.status < 300 else response.read().decode()


def leaves(schema: dict[str, Any], path: tuple[str, ...]) -> list[tuple[str, ...]]:
    found = [path] if path else []
    for name in schema.get("properties", {}):
        found += leaves(schema_at((*path, name)), (*path, name))
    return found


PATHS = [path for section in TOUCHED for path in leaves(schema_at((section,)), (section,))]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2000),
    st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**63 - 1, 0.5, 1e-4, 1.5]),
    st.sampled_from(
        [
            "",
            "0",
            "1",
            "0.5",
            "1e-4",
            "1e-99",
            "1e99",
            "-1",
            "nan",
            "a",
            "A b",
            "a/",
            "/a",
            "a\nb",
            "\u202ea",
            "é",
            "a ",
            "../a",
            "a/..",
            "a//b",
            "a\\b",
            "a/b",
            "-a/b",
            "kubernetes.io/a",
            "x" * 512,
        ]
    ),
    st.sampled_from(
        ["None", "Required", "Skip", "Fail", "LoRA", "LoKr", "fp16", "bf16", "AdamW", "500m", "1Gi", "x" * 70]
    ),
    st.sampled_from([[], ["kohya"], ["kohya", "kohya"], ["a", 1], {}, {"a": "b"}, {"a": 1}]),
    st.sampled_from(
        [{"a b": "c"}, {"x" * 64: "y"}, {"a.b/c": "d"}, [{}], [{"key": "a", "operator": "Exists"}]]
    ),
    st.sampled_from([[{"key": "x" * 64}], [{"key": "a", "tolerationSeconds": 1}], [{"effect": "NoExecute"}]]),
)


@st.composite
def mutations(draw: st.DrawFn) -> dict[str, Any]:
    document = copy.deepcopy(manifest())
    for _ in range(draw(st.integers(1, 2))):
        *parents, last = draw(st.sampled_from(PATHS))
        place = document["spec"]
        for parent in parents:
            inner = place.setdefault(parent, {})
            if not isinstance(inner, dict):
                inner = place[parent] = {}
            place = inner
        if draw(st.booleans()) and draw(st.booleans()):
            last = draw(st.sampled_from([last.lower(), f"{last}s", "max_steps"]))
        place[last] = draw(VALUES)
    return yaml.safe_load(yaml.safe_dump(document))  # type: ignore[no-any-return]
