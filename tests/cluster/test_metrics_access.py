"""`/metrics` behind a bearer token that a real API server reviews, with the chart's roles."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

import pytest
from kubernetes import client

from tests.cluster.test_faulty_proxy import ThreadedProxy
from tests.support.cluster.harness import OperatorProcess, until
from tests.support.cluster.plane import OPERATOR_NAMESPACE, TOKEN
from tests.support.cluster.proxy import NO_FAULTS
from tests.support.cluster.wire import Wire
from tests.support.helm import render

SETTINGS = {"LORA_METRICS_AUTHENTICATION": "Token"}


@pytest.fixture
def roles(api: client.ApiClient) -> Iterator[None]:
    """Create the chart's roles for token reviews and for readers, and bind the first to the tests' operator."""
    rbac = client.RbacAuthorizationV1Api(api)
    objects = render({"metrics": {"authentication": "Token"}}, name="metered")
    made = [
        found
        for found in objects
        if found["kind"] == "ClusterRole" and found["metadata"]["name"].startswith("metered-metrics")
    ]
    assert [role["metadata"]["name"] for role in made] == ["metered-metrics", "metered-metrics-reader"]
    for role in made:
        rbac.create_cluster_role(role)
    bind(api, "metered-metrics", "operator", OPERATOR_NAMESPACE)
    yield
    for role in made:
        rbac.delete_cluster_role(role["metadata"]["name"])
    for found in rbac.list_cluster_role_binding().items:
        if found.role_ref.name.startswith("metered-metrics"):
            rbac.delete_cluster_role_binding(found.metadata.name)


def bind(api: client.ApiClient, role: str, account: str, namespace: str) -> None:
    client.RbacAuthorizationV1Api(api).create_cluster_role_binding(
        {
            "metadata": {"name": f"{role}-{uuid4().hex[:6]}"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        }
    )


def account_token(api: client.ApiClient, account: str) -> str:
    core = client.CoreV1Api(api)
    core.create_namespaced_service_account("default", {"metadata": {"name": account}})
    request = {"spec": {"expirationSeconds": 3600, "audiences": []}}
    token = core.create_namespaced_service_account_token(account, "default", request).status.token
    return str(token)


def ask(operator: OperatorProcess, *headers: str, path: str = "/metrics") -> int:
    """Return the status of the response to a request with these Authorization headers."""
    request = urllib.request.Request(f"http://127.0.0.1:{operator.port}{path}")
    for header in headers:
        request.add_header("Authorization", header)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code if b"lora_operator_" not in error.read() else 200
    except OSError:
        return 0


def test_metrics_are_for_accounts_with_the_role(
    operator_files: OperatorProcess, api: client.ApiClient, roles: None
) -> None:
    operator = replace(operator_files, settings=SETTINGS)
    operator.start()
    try:
        until(lambda: ask(operator, path="/healthz") == 200)
        assert ask(operator, path="/readyz") in (200, 503), "probes need no token"
        for header in (
            "",
            "Bearer",
            "Bearer ",
            "Basic YTpi",
            "Bearer nonsense",
            f"Token {TOKEN}",
            "Bearer é",
        ):
            assert ask(operator, header) == 401, header
        assert ask(operator) == 401
        stranger, reader = account_token(api, "stranger"), account_token(api, "reader")
        bind(api, "metered-metrics-reader", "reader", "default")
        assert ask(operator, f"Bearer {stranger}") == 403
        assert ask(operator, f"Bearer {reader}") == 200
        assert ask(operator, f"bearer {reader}") == 200
        assert ask(operator, f"Bearer {reader[:-3]}abc") == 401
        client.CoreV1Api(api).delete_namespaced_service_account("stranger", "default")
    finally:
        operator.stop()
        client.CoreV1Api(api).delete_namespaced_service_account("reader", "default")
    assert reader not in operator.log
    assert stranger not in operator.log


def test_without_an_answer_of_the_api_server_nobody_reads_metrics(
    operator_files: OperatorProcess, roles: None
) -> None:
    with ThreadedProxy(Wire.read(operator_files.kubeconfig), "a seed", NO_FAULTS) as proxy:
        config = proxy.write_kubeconfig(operator_files.folder / "metrics-kubeconfig")
        operator = replace(operator_files, settings=SETTINGS, kubeconfig=config)
        operator.start()
        try:
            until(lambda: ask(operator, path="/readyz") == 200)
            proxy.dead = True
            assert ask(operator, "Bearer any") == 503
            proxy.dead = False
            assert ask(operator, "Bearer any") == 401
            assert ask(operator, f"Bearer {TOKEN}") == 200
        finally:
            operator.stop()
