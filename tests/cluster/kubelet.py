"""A kubelet that runs no container: it gives every pod of a step the end that the test's script says."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kubernetes import client
from wire import LOST, Object, Wire, WireError

from builders import ADAPTER, CAPTIONED, TRAINED
from lora_api.steps import StepName, StepResult, encode_result
from lora_operator import names

ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True)
class End:
    """How a pod's container ends, `seconds` after its start."""

    exit_code: int = 0
    message: str = ""
    reason: str = "Completed"
    seconds: float = 0.0
    disrupted: str = ""


@dataclass(frozen=True)
class Stuck:
    """Why a pod does not start: no node takes it, or its container waits with a reason."""

    unschedulable: str = ""
    waiting: str = ""
    message: str = ""


Script = Callable[[StepName, int], End | Stuck | None]
"""What becomes of a step's n-th pod (from 1); None lets it run on."""


def ended(result: StepResult, exit_code: int = 0) -> End:
    return End(exit_code, encode_result(result).decode(), "Error" if exit_code else "Completed")


def well(step: StepName, _: int) -> End:
    """Everything works."""
    if step == StepName.ANNOTATE:
        return ended(CAPTIONED)
    return ended(TRAINED.model_copy(update={"adapter": ADAPTER}))


class FakeKubelet:
    """Watches the pods of our steps in one namespace and tends them until its `with` block ends."""

    tick = 0.02
    """Seconds between two looks at all pods."""

    def __init__(self, api: client.ApiClient, namespace: str, script: Script = well) -> None:
        self.wire = Wire.of(api)
        self.namespace = namespace
        self.script = script
        self.runs: list[tuple[StepName, str]] = []
        """Every pod that was started, in order."""
        self.most_live: dict[tuple[str, str], int] = {}
        """Per (job UID, step), the most pods ever seen alive at once."""
        self._pods: dict[str, Object] = {}
        """By UID, those that still need something."""
        self._live: dict[tuple[str, str], set[str]] = {}
        self._started: dict[str, float] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._numbers: dict[str, int] = {}
        self._told: dict[str, Stuck] = {}
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.run()), daemon=True)

    def __enter__(self) -> FakeKubelet:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def fate(self, pod: Object, step: StepName, number: int) -> End | Stuck | None:
        """What becomes of a pod; asked again and again until it has ended."""
        return self.script(step, number)

    async def run(self) -> None:
        async with self.wire:
            following = asyncio.create_task(self._follow())
            while not self._stop.is_set():
                for uid, pod in list(self._pods.items()):
                    if uid not in self._busy and (work := self._due(pod)) is not None:
                        self._spawn(uid, work)
                await asyncio.sleep(self.tick)
            following.cancel()
            await asyncio.gather(following, *self._tasks, return_exceptions=True)

    async def _follow(self) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        async for kind, pod in self.wire.follow(path, labelSelector=f"{names.MANAGED_BY}={names.OPERATOR}"):
            gone = kind == "DELETED"
            self._count_live(pod, gone)
            uid = pod["metadata"]["uid"]
            if gone or (self._ended(pod) and not self._deleting(pod)):
                self._pods.pop(uid, None)
            else:
                self._pods[uid] = pod

    def _count_live(self, pod: Object, gone: bool) -> None:
        labels, uid = pod["metadata"]["labels"], pod["metadata"]["uid"]
        key = (labels[names.JOB_UID], labels[names.STEP])
        live = self._live.setdefault(key, set())
        if gone or self._ended(pod):
            live.discard(uid)
        else:
            live.add(uid)
        self.most_live[key] = max(len(live), self.most_live.get(key, 0))

    def _ended(self, pod: Object) -> bool:
        return pod["status"].get("phase") in ENDED

    def _deleting(self, pod: Object) -> bool:
        return "deletionTimestamp" in pod["metadata"]

    def _spawn(self, uid: str, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            except (*LOST, WireError) as error:
                if isinstance(error, WireError) and error.status == 404:
                    self._pods.pop(uid, None)
            finally:
                self._busy.discard(uid)

        self._busy.add(uid)
        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _due(self, pod: Object) -> Coroutine[Any, Any, None] | None:
        """What a pod needs now, if anything."""
        uid = pod["metadata"]["uid"]
        if self._deleting(pod):
            return self._terminate(pod)
        if self._ended(pod):
            return None
        labels = pod["metadata"]["labels"]
        step, key = StepName(labels[names.STEP]), (labels[names.JOB_UID], labels[names.STEP])
        if uid not in self._numbers:
            self._counts[key] = self._numbers[uid] = self._counts.get(key, 0) + 1
        fate = self.fate(pod, step, self._numbers[uid])
        if uid not in self._started:
            if not isinstance(fate, Stuck):
                return self._start(pod, step)
            return self._tell(pod, fate) if self._told.get(uid) != fate else None
        if isinstance(fate, End) and time.monotonic() - self._started[uid] >= fate.seconds:
            return self._report(pod, fate)
        return None

    async def _start(self, pod: Object, step: StepName) -> None:
        name = pod["metadata"]["name"]
        if not pod["spec"].get("nodeName"):
            # only a pod with a node is given its grace period when it is deleted
            target = {"apiVersion": "v1", "kind": "Node", "name": f"node-{random.randint(1, 3)}"}
            binding = {"metadata": {"name": name}, "target": target}
            await self.wire.call("POST", f"{self._path(pod)}/binding", binding)
        await self._report(pod, None)
        self._started[pod["metadata"]["uid"]] = time.monotonic()
        self.runs.append((step, name))

    async def _terminate(self, pod: Object) -> None:
        """As a step does on SIGTERM: it saves its work and says so."""
        if not self._ended(pod):
            await self._report(pod, End(75, "", "Error"))
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        await self.wire.call("DELETE", self._path(pod), options)
        self._pods.pop(pod["metadata"]["uid"], None)

    async def _tell(self, pod: Object, stuck: Stuck) -> None:
        status: Object = {"phase": "Pending"}
        if stuck.unschedulable:
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            status["conditions"] = [condition | {"message": stuck.unschedulable}]
        if stuck.waiting:
            state = {"waiting": {"reason": stuck.waiting, "message": stuck.message}}
            status["containerStatuses"] = [_container(state, ready=False)]
        await self.wire.call("PATCH", f"{self._path(pod)}/status", {"status": status})
        self._told[pod["metadata"]["uid"]] = stuck

    async def _report(self, pod: Object, end: End | None) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        conditions: list[Object] = []
        if end is None:
            phase, state = "Running", {"running": {"startedAt": now}}
        else:
            phase = "Failed" if end.exit_code else "Succeeded"
            said = {"exitCode": end.exit_code, "reason": end.reason, "message": end.message}
            state = {
                "terminated": said | {"startedAt": pod["status"].get("startTime", now), "finishedAt": now}
            }
        if end is not None and end.disrupted:
            disrupted = {"type": "DisruptionTarget", "status": "True", "reason": end.disrupted}
            conditions = [disrupted | {"lastTransitionTime": now}]
        status = {
            "phase": phase,
            "startTime": pod["status"].get("startTime", now),
            "containerStatuses": [_container(state, ready=end is None)],
            "conditions": conditions,
        }
        told = await self.wire.call("PATCH", f"{self._path(pod)}/status", {"status": status})
        uid = pod["metadata"]["uid"]
        if self._ended(told) and not self._deleting(told):
            self._pods.pop(uid, None)
        elif uid in self._pods:
            self._pods[uid] = told

    def _path(self, pod: Object) -> str:
        return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def _container(state: Object, ready: bool) -> Object:
    return {"name": "step", "image": "x", "imageID": "", "ready": ready, "restartCount": 0, "state": state}
