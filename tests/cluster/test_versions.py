"""From v1alpha1 to v1beta1 (docs/explanation/api-versions.md), on a real API server."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kubernetes import client

from lora_api import GROUP, PLURAL
from lora_api.stages import StageName
from tests.support.cluster import next_version_operator
from tests.support.cluster.harness import NamespaceClient, OperatorProcess, until
from tests.support.cluster.kubelet import FakeKubelet, succeed
from tests.support.cluster.plane import ROOT, install_crd, served

NAME = f"{PLURAL}.{GROUP}"


@pytest.fixture
def definition(api: client.ApiClient) -> Iterator[Any]:
    """Serve v1beta1 too, and return a function that selects the stored version. The CRD is created again at the end."""
    extensions = client.ApiextensionsV1Api(api)
    current = yaml.safe_load((ROOT / "crds" / "loratrainingjobs.yaml").read_text())["spec"]["versions"][0]

    def store(version: str) -> None:
        versions = [copy.deepcopy(current) | {"name": name} for name in ("v1alpha1", "v1beta1")]
        for each in versions:
            each["storage"] = each["name"] == version
        versions[0]["deprecated"] = True
        extensions.patch_custom_resource_definition(NAME, {"spec": {"versions": versions}})

    yield store
    extensions.delete_custom_resource_definition(NAME)
    until(lambda: not served(api))
    install_crd(api)


def test_a_stored_job_is_read_and_ended_by_the_next_version(
    cluster: NamespaceClient, operator_files: OperatorProcess, kubelet: FakeKubelet, definition: Any
) -> None:
    kubelet.script = lambda stage, n: succeed(stage, n) if stage == StageName.ANNOTATE else None
    operator_files.start()
    cluster.create("ended", annotation={"mode": "Template", "approval": "Required"})
    cluster.create("running")
    cluster.wait_for("Training", "running")
    cluster.wait_for("AwaitingApproval", "ended")
    operator_files.stop()
    before = cluster.status("ended")
    definition("v1alpha1")

    def of_next(name: str) -> dict[str, Any]:
        found: dict[str, Any] = cluster.custom.get_namespaced_custom_object(
            GROUP, "v1beta1", cluster.namespace, PLURAL, name
        )
        return found

    until(lambda: is_served(cluster, "v1beta1"))
    operator_files.start(next_version_operator.__file__)
    until(lambda: operator_files.ask("/readyz")[0] == 200)
    assert of_next("ended")["status"] == before
    definition("v1beta1")
    approval = {"approvedCaptions": f"sha256:{before['captions']['sha256']}"}
    cluster.patch({"spec": {"annotation": approval}}, "ended")
    kubelet.script = succeed
    for name in ("running", "ended"):
        status = cluster.wait_for("Succeeded", name)
        assert (status["training"]["attempt"], status["training"]["failures"]) == (1, 0)
        assert of_next(name)["status"] == status
    assert len(kubelet.runs) == 4, "each stage of each job once"
    owners = {owner.api_version for job in cluster.jobs() for owner in job.metadata.owner_references}
    assert owners == {f"{GROUP}/v1alpha1", f"{GROUP}/v1beta1"}
    operator_files.stop()


def is_served(cluster: NamespaceClient, version: str) -> bool:
    try:
        cluster.custom.list_namespaced_custom_object(GROUP, version, cluster.namespace, PLURAL)
    except client.ApiException:
        return False
    return True
