"""A Kubernetes control plane on loopback: etcd, kube-apiserver and kube-controller-manager, no node.

The programs come from `KUBEBUILDER_ASSETS` (as for Kubernetes' envtest; its default folder is tried too)
and, for etcd, from the PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from lora_api import GROUP, PLURAL, VERSION
from tests.support.ports import free_port

ROOT = Path(__file__).parents[3]
ASSETS = Path(os.environ.get("KUBEBUILDER_ASSETS", "/usr/local/kubebuilder/bin"))
TOKEN = "test-admin"
OPERATOR_NAMESPACE = "lora-system"
"""The namespace of the operator's account."""
CONTROLLERS = [
    "job-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "ttl-after-finished-controller",
    "resourcequota-controller",
]


def missing() -> str:
    """Return why no control plane can be started here; empty when one can."""
    for name in ("kube-apiserver", "kube-controller-manager"):
        if not (ASSETS / name).exists():
            return (
                f"no {name} in {ASSETS}: set KUBEBUILDER_ASSETS, or LORA_TEST_KUBECONFIG for a whole cluster"
            )
    if _etcd() is None:
        return "no etcd: put it beside kube-apiserver or on the PATH (Debian's etcd-server)"
    return ""


@dataclass
class ControlPlane:
    """A control plane that runs within its `with` block."""

    folder: Path
    port: int = 0
    _stack: ExitStack = field(default_factory=ExitStack)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "admin.kubeconfig"

    def __enter__(self) -> Self:
        etcd, peer, self.port = free_port(), free_port(), free_port()
        subprocess.run(
            ["openssl", "genrsa", "-out", self.folder / "sa.key", "2048"], check=True, capture_output=True
        )
        (self.folder / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n")
        self._etcd_url = f"http://127.0.0.1:{etcd}"
        self._spawn(
            "etcd",
            str(_etcd()),
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
        )
        self.start_api_server()
        write_kubeconfig(self, self.kubeconfig, TOKEN)
        self._spawn(
            "kube-controller-manager",
            str(ASSETS / "kube-controller-manager"),
            f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={self.folder / 'sa.key'}",
            f"--controllers={','.join(CONTROLLERS)}",
            "--use-service-account-credentials=false",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={free_port()}",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in reversed(list(self._processes)):
            self._stop(name)
        self._stack.close()

    def start_api_server(self) -> None:
        self._spawn(
            "kube-apiserver",
            str(ASSETS / "kube-apiserver"),
            f"--etcd-servers={self._etcd_url}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--cert-dir={self.folder / 'certs'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            f"--service-account-key-file={self.folder / 'sa.key'}",
            f"--service-account-signing-key-file={self.folder / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.0.0.0/24",
        )
        self._wait_ready()

    def stop_api_server(self) -> None:
        self._stop("kube-apiserver")

    def _wait_ready(self) -> None:
        context = ssl._create_unverified_context()
        request = urllib.request.Request(
            f"{self.server}/readyz", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(request, context=context, timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"kube-apiserver did not become ready; see {self.folder}")

    def _spawn(self, name: str, *arguments: str) -> None:
        log = self._stack.enter_context((self.folder / f"{name}.log").open("ab"))
        self._processes[name] = subprocess.Popen(arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _stop(self, name: str) -> None:
        process = self._processes.pop(name)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def write_kubeconfig(plane: ControlPlane, path: Path, token: str) -> Path:
    """Write a kubeconfig for a token. The API server's certificate is self-signed, so it is its own authority."""
    config: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "test",
                "cluster": {
                    "server": plane.server,
                    "certificate-authority": str(plane.folder / "certs" / "apiserver.crt"),
                },
            }
        ],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    path.write_text(yaml.safe_dump(config))
    return path


def install_crd(api: client.ApiClient) -> None:
    """Install the CustomResourceDefinition, and wait until it is served."""
    crd = yaml.safe_load((ROOT / "crds" / "loratrainingjobs.yaml").read_text())
    client.ApiextensionsV1Api(api).create_custom_resource_definition(crd)
    deadline = time.monotonic() + 20
    while not served(api):
        assert time.monotonic() < deadline, "the definition is not served"
        time.sleep(0.05)


def grant(api: client.ApiClient) -> None:
    """Create an account for the operator, with exactly the rules of the chart."""
    text = (ROOT / "charts/lora-training-operator/templates/_helpers.tpl").read_text()
    found = re.search(r'define "lora\.rules" -}}\n(.*?)\{\{- end', text, re.DOTALL)
    assert found is not None
    core, rbac = client.CoreV1Api(api), client.RbacAuthorizationV1Api(api)
    core.create_namespace({"metadata": {"name": OPERATOR_NAMESPACE}})
    core.create_namespaced_service_account(OPERATOR_NAMESPACE, {"metadata": {"name": "operator"}})
    rbac.create_cluster_role({"metadata": {"name": "operator"}, "rules": yaml.safe_load(found[1])})
    rbac.create_cluster_role_binding(
        {
            "metadata": {"name": "operator"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "operator"},
            "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": OPERATOR_NAMESPACE}],
        }
    )


def served(api: client.ApiClient) -> bool:
    try:
        client.CustomObjectsApi(api).list_namespaced_custom_object(GROUP, VERSION, "default", PLURAL)
    except ApiException:
        return False
    return True


def _etcd() -> Path | None:
    beside, found = ASSETS / "etcd", shutil.which("etcd")
    if beside.exists():
        return beside
    return Path(found) if found else None
