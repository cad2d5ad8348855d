"""A kubelet that runs no container: it gives every pod of a step the end that the test's script says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from builders import ADAPTER, CAPTIONED, TRAINED
from lora_api.steps import StepName, StepResult, encode_result
from lora_operator import names


@dataclass(frozen=True)
class End:
    """How a pod's container ends."""

    exit_code: int = 0
    message: str = ""
    reason: str = "Completed"
    seconds: float = 0.0
    disrupted: str = ""


Script = Callable[[StepName, int], End | None]
"""The end of a step's n-th pod (from 1); None lets it run on."""


def ended(result: StepResult, exit_code: int = 0) -> End:
    return End(exit_code, encode_result(result).decode(), "Error" if exit_code else "Completed")


def well(step: StepName, _: int) -> End:
    """Everything works."""
    if step == StepName.ANNOTATE:
        return ended(CAPTIONED)
    return ended(TRAINED.model_copy(update={"adapter": ADAPTER}))


class FakeKubelet:
    """Looks at the pods of our steps in one namespace over and over, until stopped."""

    def __init__(self, api: client.ApiClient, namespace: str, script: Script = well) -> None:
        self._core = client.CoreV1Api(api)
        self._namespace = namespace
        self.script = script
        self.runs: list[tuple[StepName, str]] = []
        """Every pod that was started, in order."""
        self.most_live: dict[tuple[str, str], int] = {}
        """Per (job UID, step), the most pods ever seen alive at once."""
        self._started: dict[str, float] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FakeKubelet:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            try:
                pods = self._core.list_namespaced_pod(
                    self._namespace, label_selector=f"{names.MANAGED_BY}={names.OPERATOR}"
                ).items
                self._count_live(pods)
                for pod in pods:
                    self._tend(pod)
            except (ApiException, HTTPError):
                continue

    def _count_live(self, pods: list[Any]) -> None:
        live: dict[tuple[str, str], int] = {}
        for pod in pods:
            if pod.status.phase not in ("Succeeded", "Failed"):
                key = (pod.metadata.labels[names.JOB_UID], pod.metadata.labels[names.STEP])
                live[key] = live.get(key, 0) + 1
        for key, count in live.items():
            self.most_live[key] = max(count, self.most_live.get(key, 0))

    def _tend(self, pod: Any) -> None:
        if pod.status.phase in ("Succeeded", "Failed"):
            if pod.metadata.deletion_timestamp:
                self._core.delete_namespaced_pod(pod.metadata.name, self._namespace, grace_period_seconds=0)
            return
        if pod.metadata.deletion_timestamp:
            # as a step does on SIGTERM: it saves its work and says so
            self._report(pod, End(75, "", "Error"))
            self._core.delete_namespaced_pod(pod.metadata.name, self._namespace, grace_period_seconds=0)
            return
        uid, step = pod.metadata.uid, StepName(pod.metadata.labels[names.STEP])
        if uid not in self._started:
            key = (pod.metadata.labels[names.JOB_UID], str(step))
            self._counts[key] = self._counts.get(key, 0) + 1
            self._started[uid] = time.monotonic()
            self.runs.append((step, pod.metadata.name))
            self._report(pod, None)
            return
        number = self._counts[(pod.metadata.labels[names.JOB_UID], str(step))]
        end = self.script(step, number)
        if end is not None and time.monotonic() - self._started[uid] >= end.seconds:
            self._report(pod, end)

    def _report(self, pod: Any, end: End | None) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        conditions = []
        if end is None:
            phase, state = "Running", {"running": {"startedAt": now}}
        else:
            phase = "Failed" if end.exit_code else "Succeeded"
            state = {
                "terminated": {
                    "exitCode": end.exit_code,
                    "reason": end.reason,
                    "message": end.message,
                    "startedAt": now,
                    "finishedAt": now,
                }
            }
            if end.disrupted:
                conditions = [
                    {
                        "type": "DisruptionTarget",
                        "status": "True",
                        "reason": end.disrupted,
                        "lastTransitionTime": now,
                    }
                ]
        container = {
            "name": "step",
            "image": "x",
            "imageID": "",
            "ready": end is None,
            "restartCount": 0,
            "state": state,
        }
        status = {
            "phase": phase,
            "startTime": now,
            "containerStatuses": [container],
            "conditions": conditions,
        }
        self._core.patch_namespaced_pod_status(pod.metadata.name, self._namespace, {"status": status})
