"""Fixtures: a real API server with the real controllers, a namespace for each test, and an operator as a process."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any
from uuid import uuid4

import pytest
from kubernetes import client, config

from tests.support.cluster.harness import NamespaceClient, OperatorProcess, install_operator, until
from tests.support.cluster.kubelet import FakeKubelet
from tests.support.cluster.plane import ControlPlane, grant, install_crd, missing
from tests.support.cluster.state import describe_cluster, describe_operator


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the state of the cluster and of the operator to the report of a test that failed."""
    report = yield
    if call.when == "call" and report.failed:
        report.sections += _describe_state(getattr(item, "funcargs", {}))
    return report


def _describe_state(arguments: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(cluster := arguments.get("cluster"), NamespaceClient):
        try:
            text = describe_cluster(cluster)
        except Exception as error:  # the API server may be what failed
            text = repr(error)
        yield "objects in the namespace", text
    operator = arguments.get("operator") or arguments.get("operator_files")
    if isinstance(operator, OperatorProcess):
        yield "operator", describe_operator(operator)


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
def cluster(api: client.ApiClient) -> Iterator[NamespaceClient]:
    name = f"test-{uuid4().hex[:8]}"
    core = client.CoreV1Api(api)
    core.create_namespace({"metadata": {"name": name}})
    until(lambda: core.list_namespaced_service_account(name).items)
    yield NamespaceClient(api, name)
    core.delete_namespace(name)
    # Without a kubelet, a pod on a node would keep the namespace and its jobs, and these count as running. The Job
    # controller releases the pod of a Job that is gone.
    client.BatchV1Api(api).delete_collection_namespaced_job(name, propagation_policy="Background")
    core.delete_collection_namespaced_pod(name, grace_period_seconds=0)


@pytest.fixture
def kubelet(cluster: NamespaceClient) -> Iterator[FakeKubelet]:
    with FakeKubelet(cluster.api, cluster.namespace) as running:
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
