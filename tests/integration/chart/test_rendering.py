"""The rendered chart with all sets of values: valid for Kubernetes, restricted, and without conflicts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lora_api.profile import Profiles
from tests.support.helm import CHART, VALUE_SETS, helm, render

OLDEST, NEWEST = "1.31", kubernetes_validate.latest_version()
FOREIGN = "monitoring.coreos.com/v1"


@cache
def problem(manifest: str, version: str) -> str:
    """Return the error of Kubernetes' schema for an object, unknown fields included; empty if it is valid."""
    try:
        kubernetes_validate.validate(json.loads(manifest), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return ""


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_knows_every_object_and_field(rendered: list[dict[str, Any]], version: str) -> None:
    for found in rendered:
        if found["apiVersion"] != FOREIGN:
            name = f"{found['kind']} {found['metadata']['name']}"
            assert problem(json.dumps(found), version) == "", name


def test_the_schema_check_finds_a_misspelt_field() -> None:
    service = next(found for found in render() if found["kind"] == "Service")
    service["spec"]["selektor"] = {}
    assert "selektor" in problem(json.dumps(service), NEWEST)


@pytest.mark.parametrize("name", VALUE_SETS)
def test_helm_lint_has_no_warnings(name: str) -> None:
    ran = helm("lint", "--strict", str(CHART), "--namespace", "lora-system", values=VALUE_SETS[name])
    assert "[WARNING]" not in ran.stdout


def test_no_two_objects_have_one_name(rendered: list[dict[str, Any]]) -> None:
    names = Counter(
        (found["apiVersion"], found["kind"], found["metadata"].get("namespace"), found["metadata"]["name"])
        for found in rendered
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_names_stay_short_enough_for_the_longest_release() -> None:
    values = {
        **VALUE_SETS["demo"],
        **VALUE_SETS["cached-models"],
        "trialStore": {"enabled": True},
        "replicas": 2,
    }
    names = [found["metadata"]["name"] for found in render(values, name="r" * 53)]
    assert max(len(name) for name in names) <= 63


CLUSTER_WIDE = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}


def test_every_object_has_a_namespace_and_the_releases_labels(rendered: list[dict[str, Any]]) -> None:
    for found in rendered:
        assert ("namespace" in found["metadata"]) == (found["kind"] not in CLUSTER_WIDE), found["metadata"]
        assert found["metadata"]["labels"]["app.kubernetes.io/instance"] == "lora"


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield the name, the metadata and the spec of every pod that the objects are or create."""
    for found in objects:
        name = f"{found['kind']} {found['metadata']['name']}"
        if found["kind"] == "Pod":
            yield name, found["metadata"], found["spec"]
        elif template := found.get("spec", {}).get("template"):
            yield name, template["metadata"], template["spec"]


def test_every_pod_is_restricted(rendered: list[dict[str, Any]]) -> None:
    """Pods meet the restricted Pod Security Standard and have a read-only root file system."""
    for name, _, pod in pods(rendered):
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] == 65532, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        kinds = {kind for volume in pod.get("volumes", []) for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}, name
        assert all(v["emptyDir"].get("sizeLimit") for v in pod.get("volumes", []) if "emptyDir" in v), name
        assert "initContainers" not in pod
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"], name


def test_only_pods_that_ask_the_api_server_have_a_token(
    rendered: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    values = VALUE_SETS[request.node.callspec.params["rendered"]]
    asking = {"operator", "test"}
    if values.get("demo", {}).get("jobs", {}).get("access") == "serviceAccount":
        asking.add("demo")
    for name, meta, pod in pods(rendered):
        asks = meta["labels"]["app.kubernetes.io/component"] in asking
        assert pod["automountServiceAccountToken"] is asks, name


def test_pull_secrets_reach_every_pod(rendered: list[dict[str, Any]], request: pytest.FixtureRequest) -> None:
    expected = VALUE_SETS[request.node.callspec.params["rendered"]].get("imagePullSecrets", [])
    for name, _, pod in pods(rendered):
        assert [secret["name"] for secret in pod.get("imagePullSecrets", [])] == expected, name


def test_selectors_select_their_own_pods_and_no_others(rendered: list[dict[str, Any]]) -> None:
    components = [meta["labels"] for _, meta, _ in pods(rendered)]
    for found in rendered:
        if found["kind"] in ("Deployment", "Service"):
            selector = found["spec"]["selector"]
            labels = selector.get("matchLabels", selector)
            hit = [pod for pod in components if labels.items() <= pod.items()]
            assert len(hit) == 1, found["metadata"]["name"]
            assert (
                hit[0]["app.kubernetes.io/component"]
                == found["metadata"]["labels"]["app.kubernetes.io/component"]
            )


def test_volumes_are_mounted_and_mounts_have_volumes(rendered: list[dict[str, Any]]) -> None:
    maps = {
        (found["metadata"]["namespace"], found["metadata"]["name"])
        for found in rendered
        if found["kind"] == "ConfigMap"
    }
    own = {name for _, name in maps}
    for name, _, pod in pods(rendered):
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        mounts = {mount["name"] for box in pod["containers"] for mount in box.get("volumeMounts", [])}
        assert volumes == mounts, name
        named = {volume["configMap"]["name"] for volume in pod.get("volumes", []) if "configMap" in volume}
        assert {ref for ref in named if ref.startswith("lora-")} <= own, name


def test_the_operators_file_is_one_that_it_can_read(rendered: list[dict[str, Any]]) -> None:
    found = next(item for item in rendered if item["metadata"]["name"] == "lora-profiles")
    Profiles.model_validate(yaml.safe_load(found["data"]["profiles.yaml"]))


def operator(values: Any = None) -> dict[str, Any]:
    found: dict[str, Any] = next(
        item for item in render(values) if item["kind"] == "Deployment" and item["metadata"]["name"] == "lora"
    )
    return found["spec"]


@pytest.mark.parametrize(
    ("replicas", "strategy", "lease"), [(1, "Recreate", None), (2, "RollingUpdate", "lora-system/lora")]
)
def test_several_operators_elect_a_leader(replicas: int, strategy: str, lease: str | None) -> None:
    objects = render({"replicas": replicas})
    spec = operator({"replicas": replicas})
    env = {item["name"]: item.get("value") for item in spec["template"]["spec"]["containers"][0]["env"]}
    assert spec["strategy"]["type"] == strategy
    assert env.get("LORA_LEASE") == lease
    budget = [item for item in objects if item["kind"] == "PodDisruptionBudget"]
    roles = [item for item in objects if item["metadata"]["name"] == "lora-leader"]
    assert (len(budget), len(roles)) == ((1, 2) if replicas > 1 else (0, 0))


def test_an_images_digest_wins_over_its_tag_and_the_chart_has_a_tag_of_its_own() -> None:
    digest = "sha256:" + "0" * 64
    box = operator({"image": {"tag": "x", "digest": digest}, "trainImage": {"tag": "y"}})
    container = box["template"]["spec"]["containers"][0]
    env = {item["name"]: item.get("value") for item in container["env"]}
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert container["image"] == f"ghcr.io/lora-training/lora-operator@{digest}"
    assert env["LORA_TRAIN_IMAGE"].endswith(":y")
    assert env["LORA_ANNOTATE_IMAGE"].endswith(f":{version}")


def test_the_crd_is_kept_unless_keep_is_false() -> None:
    def annotations(keep: bool) -> Any:
        objects = render({"crds": {"keep": keep}})
        crd = next(item for item in objects if item["kind"] == "CustomResourceDefinition")
        return crd["metadata"].get("annotations")

    assert annotations(keep=True) == {"helm.sh/resource-policy": "keep"}
    assert annotations(keep=False) is None
