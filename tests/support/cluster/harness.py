"""Helpers for tests on a real API server: a client for the test's own namespace, and an operator to start and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client
from prometheus_client.parser import text_string_to_metric_families

from lora_api import API_VERSION, GROUP, KIND, PLURAL, VERSION
from tests.support.builders import wire_spec
from tests.support.cluster.plane import OPERATOR_NAMESPACE, ControlPlane, write_kubeconfig
from tests.support.ports import free_port

PROFILES = {
    "profiles": {
        "default": {
            "namespaces": ["test-*"],
            "store": {"endpoint": "127.0.0.1:9", "secure": False},
            "models": {"sdxl-base-1.0": {"source": "store", "key": "models/x/"}},
        }
    }
}


PATIENCE_SECONDS = 120.0
"""Time limit of a wait. It is far more than anything takes, because the machine may be busy."""


def until(check: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait until a check returns a true value, and return it; fail the test after a time limit."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.05)
    return found


@dataclass
class NamespaceClient:
    """A client for one test's namespace: it creates, reads and changes jobs, and lists their child Jobs and pods."""

    api: client.ApiClient
    namespace: str
    custom: client.CustomObjectsApi = field(init=False)
    batch: client.BatchV1Api = field(init=False)
    core: client.CoreV1Api = field(init=False)

    def __post_init__(self) -> None:
        self.custom = client.CustomObjectsApi(self.api)
        self.batch = client.BatchV1Api(self.api)
        self.core = client.CoreV1Api(self.api)

    def create(self, name: str = "statue", **spec: Any) -> dict[str, Any]:
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": wire_spec(**{"annotation": {"mode": "Template"}, **spec}),
        }
        made: dict[str, Any] = self.custom.create_namespaced_custom_object(
            GROUP, VERSION, self.namespace, PLURAL, body
        )
        return made

    def get(self, name: str = "statue") -> dict[str, Any]:
        found: dict[str, Any] = self.custom.get_namespaced_custom_object(
            GROUP, VERSION, self.namespace, PLURAL, name
        )
        return found

    def status(self, name: str = "statue") -> dict[str, Any]:
        found: dict[str, Any] = self.get(name).get("status") or {}
        return found

    def patch(self, change: dict[str, Any], name: str = "statue") -> None:
        self.custom.patch_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, name, change)

    def delete(self, name: str = "statue") -> None:
        self.custom.delete_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, name)

    def jobs(self) -> list[Any]:
        found: list[Any] = self.batch.list_namespaced_job(self.namespace).items
        return found

    def pods(self) -> list[Any]:
        found: list[Any] = self.core.list_namespaced_pod(self.namespace).items
        return found

    def phase(self, name: str = "statue") -> str:
        return str(self.status(name).get("phase", ""))

    def condition(self, kind: str, name: str = "statue") -> tuple[str, str]:
        for found in self.status(name).get("conditions", []):
            if found["type"] == kind:
                return found["status"], found["reason"]
        return "", ""

    def message(self, name: str = "statue") -> str:
        return next(
            (c["message"] for c in self.status(name).get("conditions", []) if c["type"] == "Succeeded"), ""
        )

    def wait_for(self, phase: str, name: str = "statue", seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        until(lambda: self.phase(name) == phase, seconds)
        return self.status(name)


@dataclass
class OperatorProcess:
    """`python -m lora_operator` under the chart's Role; it can be killed and started again."""

    kubeconfig: Path
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    port: int = 0

    def start(self, *program: str) -> None:
        """Start `python -m lora_operator`, or another program in its place."""
        self.port = free_port()
        environment = os.environ | {
            "KUBECONFIG": str(self.kubeconfig),
            "LORA_ANNOTATE_IMAGE": "annotate:test",
            "LORA_TRAIN_IMAGE": "train:test",
            "LORA_PROFILES": str(self.folder / "profiles.yaml"),
            "LORA_HOST": "127.0.0.1",
            "LORA_PORT": str(self.port),
            **self.settings,
        }
        with (self.folder / "operator.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(program or ("-m", "lora_operator"))],
                env=environment,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def ask(self, path: str) -> tuple[int, str]:
        """Return the status and the text of an HTTP response of the operator; (0, "") when it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples, whatever their labels."""
        families = text_string_to_metric_families(self.ask("/metrics")[1])
        return sum(s.value for family in families for s in family.samples if s.name == name)

    @property
    def log(self) -> str:
        return (self.folder / "operator.log").read_text()


def install_operator(plane: ControlPlane, api: client.ApiClient, folder: Path) -> OperatorProcess:
    """Prepare an operator process, with `PROFILES` and the account of `plane.grant`. It is not started yet."""
    (folder / "profiles.yaml").write_text(yaml.safe_dump(PROFILES))
    request = {"spec": {"expirationSeconds": 36000, "audiences": []}}
    token = client.CoreV1Api(api).create_namespaced_service_account_token(
        "operator", OPERATOR_NAMESPACE, request
    )
    return OperatorProcess(write_kubeconfig(plane, folder / "kubeconfig", token.status.token), folder)
