"""A simulated kubelet that runs no containers. It ends every pod of a stage as the test's script says."""

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

from lora_api.keys import JobKeys
from lora_api.stages import StageName, StageResult, decode_result, encode_result
from lora_operator import names
from tests.support.builders import ADAPTER, CAPTIONED, TRAINED, relocate
from tests.support.cluster.wire import CONNECTION_ERRORS, Object, Wire, WireError

ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True)
class End:
    """How a pod's container ends, `seconds` after its start."""

    exit_code: int = 0
    message: str = ""
    reason: str = "Completed"
    seconds: float = 0.0
    disrupted: str = ""
    sidecar: str = ""
    """The name of another container in the pod."""
    sidecar_exit: int | None = 0
    """Exit code of the other container; None: it keeps running, and so does the pod."""
    sidecar_init: bool = False
    """It is a native sidecar: an init container that is restarted."""
    pod_reason: str = ""
    pod_message: str = ""
    """The pod's own reason and message, as the kubelet sets them when it evicts a pod."""


@dataclass(frozen=True)
class Stuck:
    """Why a pod does not start: it fits no node, or its container waits with a reason."""

    unschedulable: str = ""
    waiting: str = ""
    message: str = ""


Script = Callable[[StageName, int], End | Stuck | None]
"""Returns what a stage's n-th pod (from 1) does. None: it keeps running."""


def ended(result: StageResult, exit_code: int = 0) -> End:
    return End(exit_code, encode_result(result).decode(), "Error" if exit_code else "Completed")


def succeed(stage: StageName, _: int) -> End:
    """Let every stage succeed."""
    if stage == StageName.ANNOTATE:
        return ended(CAPTIONED)
    return ended(TRAINED.model_copy(update={"adapter": ADAPTER}))


NODES = ("node-1", "node-2", "node-3")


class FakeKubelet:
    """Watches the pods of stages in one namespace and writes their status until its `with` block ends.

    A pod that a test creates on a node of another name is the test's own, and is left as it is.
    """

    tick = 0.02
    """Seconds between two checks of all pods."""

    def __init__(self, api: client.ApiClient, namespace: str, script: Script = succeed) -> None:
        self.wire = Wire.of(api)
        self.namespace = namespace
        self.script = script
        self.runs: list[tuple[StageName, str]] = []
        """The stage and the name of every pod that was started, in order."""
        self.most_live: dict[tuple[str, str], int] = {}
        """The largest number of active pods at the same time, by job UID and stage."""
        self._pods: dict[str, Object] = {}
        """Pods that have not ended, by UID."""
        self._live: dict[tuple[str, str], set[str]] = {}
        self._started: dict[str, float] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._numbers: dict[str, int] = {}
        self._reported_stuck: dict[str, Stuck] = {}
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

    def choose_behavior(self, pod: Object, stage: StageName, number: int) -> End | Stuck | None:
        """Return what a pod does next. It is called repeatedly until the pod has ended."""
        return self.script(stage, number)

    async def run(self) -> None:
        async with self.wire:
            following = asyncio.create_task(self._follow())
            while not self._stop.is_set():
                for uid, pod in list(self._pods.items()):
                    if uid not in self._busy and (work := self._next_write(pod)) is not None:
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
            if pod["spec"].get("nodeName", NODES[0]) not in NODES:
                continue
            if gone or (self._ended(pod) and not self._deleting(pod)):
                self._pods.pop(uid, None)
            else:
                self._pods[uid] = pod

    def _count_live(self, pod: Object, gone: bool) -> None:
        labels, uid = pod["metadata"]["labels"], pod["metadata"]["uid"]
        key = (labels[names.JOB_UID], labels[names.STAGE])
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
            except (*CONNECTION_ERRORS, WireError) as error:
                if isinstance(error, WireError) and error.status == 404:
                    self._pods.pop(uid, None)
            finally:
                self._busy.discard(uid)

        self._busy.add(uid)
        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _next_write(self, pod: Object) -> Coroutine[Any, Any, None] | None:
        """Return the next status write for a pod; None if there is none now."""
        uid = pod["metadata"]["uid"]
        if self._deleting(pod):
            return self._terminate(pod)
        if self._ended(pod):
            return None
        labels = pod["metadata"]["labels"]
        stage, key = StageName(labels[names.STAGE]), (labels[names.JOB_UID], labels[names.STAGE])
        if uid not in self._numbers:
            self._counts[key] = self._numbers[uid] = self._counts.get(key, 0) + 1
        behavior = self.choose_behavior(pod, stage, self._numbers[uid])
        if uid not in self._started:
            if not isinstance(behavior, Stuck):
                return self._start(pod, stage)
            return self._report_stuck(pod, behavior) if self._reported_stuck.get(uid) != behavior else None
        if isinstance(behavior, End) and time.monotonic() - self._started[uid] >= behavior.seconds:
            return self._report(pod, behavior)
        return None

    async def _start(self, pod: Object, stage: StageName) -> None:
        name = pod["metadata"]["name"]
        if not pod["spec"].get("nodeName"):
            # only a pod with a node is given its grace period when it is deleted
            target = {"apiVersion": "v1", "kind": "Node", "name": random.choice(NODES)}
            binding = {"metadata": {"name": name}, "target": target}
            await self.wire.call("POST", f"{self._path(pod)}/binding", binding)
        await self._report(pod, None)
        self._started[pod["metadata"]["uid"]] = time.monotonic()
        self.runs.append((stage, name))

    async def _terminate(self, pod: Object) -> None:
        """End a pod as a stage does on SIGTERM: its work is saved and it is interrupted."""
        if not self._ended(pod):
            await self._report(pod, End(75, "", "Error"))
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        await self.wire.call("DELETE", self._path(pod), options)
        self._pods.pop(pod["metadata"]["uid"], None)

    async def _report_stuck(self, pod: Object, stuck: Stuck) -> None:
        status: Object = {"phase": "Pending"}
        if stuck.unschedulable:
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            status["conditions"] = [condition | {"message": stuck.unschedulable}]
        if stuck.waiting:
            state = {"waiting": {"reason": stuck.waiting, "message": stuck.message}}
            status["containerStatuses"] = [_container(state, ready=False)]
        await self.wire.call("PATCH", f"{self._path(pod)}/status", {"status": status})
        self._reported_stuck[pod["metadata"]["uid"]] = stuck

    async def _report(self, pod: Object, end: End | None) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        # the kubelet keeps what others wrote, such as the reason of an eviction
        conditions = [c for c in pod["status"].get("conditions", []) if c["type"] == "DisruptionTarget"]
        if end is None:
            phase, state = "Running", {"running": {"startedAt": now}}
        else:
            phase = "Failed" if end.exit_code or end.sidecar_exit else "Succeeded"
            if end.sidecar and end.sidecar_exit is None:
                phase = "Running"
            terminated = {
                "exitCode": end.exit_code,
                "reason": end.reason,
                "message": _relocated(end.message, pod),
            }
            state = {
                "terminated": terminated
                | {"startedAt": pod["status"].get("startTime", now), "finishedAt": now}
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
        if end is not None:
            status |= _sidecar(end, state, status["containerStatuses"], now)
            status |= {"reason": end.pod_reason, "message": end.pod_message} if end.pod_reason else {}
        updated = await self.wire.call("PATCH", f"{self._path(pod)}/status", {"status": status})
        uid = pod["metadata"]["uid"]
        if self._deleting(self._pods.get(uid, updated)):
            return  # the watch was faster than the answer, and the pod still has to be ended
        if (self._ended(updated) or (end is not None and end.sidecar)) and not self._deleting(updated):
            self._pods.pop(uid, None)
        elif uid in self._pods:
            self._pods[uid] = updated

    def _path(self, pod: Object) -> str:
        return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def _container(state: Object, ready: bool) -> Object:
    return {"name": "stage", "image": "x", "imageID": "", "ready": ready, "restartCount": 0, "state": state}


def _sidecar(end: End, state: Object, own: list[Object], now: str) -> Object:
    """Build the status of another container. Statuses are sorted by name, as the kubelet sorts them."""
    if not end.sidecar:
        return {}
    other: Object = {"running": {"startedAt": now}}
    if end.sidecar_exit is not None:
        times = {"startedAt": now, "finishedAt": now}
        other = {"terminated": {"exitCode": end.sidecar_exit, "reason": "Completed", **times}}
    status = _container(other, ready="running" in other) | {"name": end.sidecar}
    if end.sidecar_init:
        return {"initContainerStatuses": [status | {"started": True}]}
    return {"containerStatuses": sorted([*own, status], key=lambda item: item["name"])}


def _relocated(message: str, pod: Object) -> str:
    """Return a script's result with the keys of the pod's job."""
    result, metadata = decode_result(message), pod["metadata"]
    if result is None:
        return message
    name, uid = metadata["annotations"][names.OWNER_NAME], metadata["labels"][names.JOB_UID]
    keys = JobKeys(metadata["namespace"], name, uid)
    return encode_result(relocate(result, keys)).decode()
