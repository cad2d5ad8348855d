"""A real API server with the real controllers, a namespace a test, and an operator as a process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from kubelet import FakeKubelet
from kubernetes import client, config
from plane import ControlPlane, install_crd, missing, write_kubeconfig
from studio import OperatorProcess, Studio, until

ROOT = Path(__file__).parents[2]
PROFILES = {
    "profiles": {
        "default": {
            "namespaces": ["test-*"],
            "store": {"endpoint": "127.0.0.1:9", "secure": False},
            "models": {"sdxl-base-1.0": {"source": "store", "key": "models/x/"}},
        }
    }
}


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    if reason := missing():
        pytest.skip(reason)
    with ControlPlane(tmp_path_factory.mktemp("plane")) as running:
        api = config.new_client_from_config(str(running.kubeconfig))
        client.CoreV1Api(api).create_namespace({"metadata": {"name": "lora-system"}})
        _grant(api)
        install_crd(api)
        yield running
        api.close()


@pytest.fixture(scope="session")
def api(plane: ControlPlane) -> Iterator[client.ApiClient]:
    found = config.new_client_from_config(str(plane.kubeconfig))
    yield found
    found.close()


def _grant(api: client.ApiClient) -> None:
    """Exactly the rules of the chart, to the account that the operator under test has."""
    text = (ROOT / "charts/lora-training-operator/templates/_helpers.tpl").read_text()
    found = re.search(r'define "lora\.rules" -}}\n(.*?)\{\{- end', text, re.DOTALL)
    assert found is not None
    rbac = client.RbacAuthorizationV1Api(api)
    rbac.create_cluster_role({"metadata": {"name": "operator"}, "rules": yaml.safe_load(found[1])})
    client.CoreV1Api(api).create_namespaced_service_account("lora-system", {"metadata": {"name": "operator"}})
    rbac.create_cluster_role_binding(
        {
            "metadata": {"name": "operator"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "operator"},
            "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": "lora-system"}],
        }
    )


@pytest.fixture
def studio(api: client.ApiClient) -> Iterator[Studio]:
    name = f"test-{uuid4().hex[:8]}"
    core = client.CoreV1Api(api)
    core.create_namespace({"metadata": {"name": name}})
    until(lambda: core.list_namespaced_service_account(name).items)
    yield Studio(api, name)
    core.delete_namespace(name)


@pytest.fixture
def kubelet(studio: Studio) -> Iterator[FakeKubelet]:
    with FakeKubelet(studio.api, studio.namespace) as running:
        yield running


@pytest.fixture(scope="session")
def operator_files(
    plane: ControlPlane, api: client.ApiClient, tmp_path_factory: pytest.TempPathFactory
) -> OperatorProcess:
    folder = tmp_path_factory.mktemp("operator")
    (folder / "profiles.yaml").write_text(yaml.safe_dump(PROFILES))
    request = {"spec": {"expirationSeconds": 36000, "audiences": []}}
    token = client.CoreV1Api(api).create_namespaced_service_account_token("operator", "lora-system", request)
    return OperatorProcess(write_kubeconfig(plane, folder / "kubeconfig", token.status.token), folder)


@pytest.fixture
def operator(operator_files: OperatorProcess) -> Iterator[OperatorProcess]:
    operator_files.start()
    yield operator_files
    operator_files.stop()
