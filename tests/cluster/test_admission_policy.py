"""The chart's ValidatingAdmissionPolicy on a real API server: settings that it refuses, and who may approve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from lora_api import GROUP
from tests.support.cluster.harness import NamespaceClient, until
from tests.support.cluster.plane import ControlPlane
from tests.support.helm import render

POLICY = {
    "enabled": True,
    "namespaceSelector": {"matchLabels": {"policy": "on"}},
    "priorityClasses": ["batch"],
    "runtimeClasses": ["nvidia"],
    "tolerationKeys": ["gpu"],
    "nodeSelectorKeys": ["pool"],
    "maxGPUs": 2,
    "approvers": {"users": ["ada"], "groups": ["reviewers"]},
}
DIGEST = "a" * 64


@pytest.fixture
def guarded(api: client.ApiClient, cluster: NamespaceClient) -> Iterator[NamespaceClient]:
    """Yield a namespace in which the policy is in effect."""
    admission = client.AdmissionregistrationV1Api(api)
    objects = [o for o in render({"admissionPolicy": POLICY}) if o["kind"].startswith("ValidatingAdmission")]
    policy, binding = sorted(objects, key=lambda found: len(found["kind"]))
    name = policy["metadata"]["name"]
    admission.create_validating_admission_policy(policy)
    admission.create_validating_admission_policy_binding(binding)
    client.CoreV1Api(api).patch_namespace(cluster.namespace, {"metadata": {"labels": {"policy": "on"}}})

    def holds() -> bool:
        try:
            cluster.create("probe", resources={"train": {"gpus": 16}})
        except ApiException as error:
            return "gpus must be at most 2" in error.body
        cluster.custom.delete_namespaced_custom_object(
            GROUP, "v1alpha1", cluster.namespace, "loratrainingjobs", "probe"
        )
        return False

    until(holds)
    warnings = admission.read_validating_admission_policy(name).status
    checked = warnings.type_checking if warnings else None
    assert not (checked and checked.expression_warnings), checked
    yield cluster
    admission.delete_validating_admission_policy_binding(name)
    admission.delete_validating_admission_policy(name)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"scheduling": {"priorityClassName": "system-cluster-critical"}},
        "priorityClassName must be unset or one of: batch",
    ),
    ({"scheduling": {"runtimeClassName": "runc"}}, "runtimeClassName must be unset or one of: nvidia"),
    ({"scheduling": {"tolerations": [{"operator": "Exists"}]}}, "tolerations may tolerate gpu"),
    (
        {
            "scheduling": {
                "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]
            }
        },
        "tolerations may tolerate gpu",
    ),
    (
        {"scheduling": {"nodeSelector": {"node-role.kubernetes.io/control-plane": ""}}},
        "nodeSelector may use pool",
    ),
    ({"resources": {"train": {"gpuResource": "amd.com/gpu"}}}, "gpuResource must be one of: nvidia.com/gpu"),
    ({"resources": {"train": {"gpus": 3}}}, "gpus must be at most 2"),
    (
        {"annotation": {"mode": "Template", "approval": "Required", "approvedCaptions": DIGEST}},
        "approver only",
    ),
]
ALLOWED = {
    "annotation": {"mode": "Template", "approval": "Required"},
    "scheduling": {
        "priorityClassName": "batch",
        "runtimeClassName": "nvidia",
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
    },
    "resources": {"train": {"gpus": 2}},
}


def approve(cluster: NamespaceClient, api: client.ApiClient, user: str, group: str = "") -> None:
    custom = client.CustomObjectsApi(api)
    api.set_default_header("Impersonate-User", user)
    if group:
        api.set_default_header("Impersonate-Group", group)
    try:
        custom.patch_namespaced_custom_object(
            GROUP, "v1alpha1", cluster.namespace, "loratrainingjobs", "statue",
            {"spec": {"annotation": {"approvedCaptions": DIGEST}}},
        )  # fmt: skip
    finally:
        for name in ("Impersonate-User", "Impersonate-Group"):
            api.default_headers.pop(name, None)


def refusal(cluster: NamespaceClient, spec: dict[str, Any]) -> str:
    """Return the message with which the API server refuses a job."""
    try:
        cluster.create("attack", **spec)
    except ApiException as error:
        return str(error.body)
    return "admitted"


def test_the_policy_refuses_and_allows(guarded: NamespaceClient, plane: ControlPlane) -> None:
    for spec, words in REFUSED:
        assert words in refusal(guarded, spec), spec
    guarded.create("statue", **ALLOWED)
    # fields that the policy does not restrict
    guarded.patch({"spec": {"runPolicy": {"suspend": True}}})

    rbac = client.RbacAuthorizationV1Api(guarded.api)
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    subjects = [
        {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
        for kind, name in (("User", "ada"), ("User", "mallory"), ("Group", "reviewers"))
    ]
    binding = {"metadata": {"name": "everybody"}, "roleRef": role, "subjects": subjects}
    rbac.create_namespaced_role_binding(guarded.namespace, binding)
    api = config.new_client_from_config(str(plane.kubeconfig))
    try:
        with pytest.raises(ApiException) as refused:
            approve(guarded, api, "mallory")
        assert "may be set by an approver only" in refused.value.body
        approve(guarded, api, "eve", "reviewers")
        approve(guarded, api, "ada")
    finally:
        api.close()
    assert guarded.get()["spec"]["annotation"]["approvedCaptions"] == DIGEST


def test_the_policy_applies_only_to_its_namespaces(guarded: NamespaceClient, api: client.ApiClient) -> None:
    client.CoreV1Api(api).patch_namespace(guarded.namespace, {"metadata": {"labels": {"policy": "off"}}})

    def free() -> bool:
        try:
            guarded.create("free", resources={"train": {"gpus": 16}})
        except ApiException:
            return False
        return True

    until(free)
