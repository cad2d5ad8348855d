"""A real API server with the real controllers, a namespace a test, and an operator as a process."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from kubelet import FakeKubelet
from kubernetes import client, config
from plane import ControlPlane, grant, install_crd, missing
from studio import OperatorProcess, Studio, install_operator, until


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    if reason := missing():
        pytest.skip(reason)
    with ControlPlane(tmp_path_factory.mktemp("plane")) as running:
        api = config.new_client_from_config(str(running.kubeconfig))
        grant(api)
        install_crd(api)
        yield running
        api.close()


@pytest.fixture(scope="session")
def api(plane: ControlPlane) -> Iterator[client.ApiClient]:
    found = config.new_client_from_config(str(plane.kubeconfig))
    yield found
    found.close()


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
    return install_operator(plane, api, tmp_path_factory.mktemp("operator"))


@pytest.fixture
def operator(operator_files: OperatorProcess) -> Iterator[OperatorProcess]:
    operator_files.start()
    yield operator_files
    operator_files.stop()
