"""A control plane with fake nodes, an operator on it, and jobs for both."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from kubelet import FakeKubelet, well
from kubernetes import client, config
from plane import ControlPlane
from rich.progress import Progress, TaskID
from studio import OperatorProcess
from wire import Object, Wire

from builders import HASH, PROFILE, snapshot, wire_spec
from lora_api import API_VERSION, GROUP, KIND, PLURAL, VERSION
from lora_api.steps import StepName
from lora_operator.decide import StartAnnotation, StartTraining
from lora_operator.manifests import CLUSTER, build_job, build_step
from lora_operator.settings import Images

AT_ONCE = 32
MEGABYTE = 2**20


class Pods(Enum):
    """How long pods run: seconds of an annotation, and of a training."""

    AT_ONCE = (0.0, 0.0)
    SHORT = (10.0, 60.0)
    """About the quickstart's, which trains 300 steps of 64 pixels on a CPU; those of real models run for minutes."""
    ENDLESS = (0.0, math.inf)


class TimedKubelet(FakeKubelet):
    """Ends a pod well when its time is over."""

    tick = 0.1  # thousands of pods may run

    def __init__(self, api: client.ApiClient, namespace: str, pods: Pods) -> None:
        steps = (StepName.ANNOTATE, StepName.TRAIN)
        ends = {
            step: replace(well(step, 1), seconds=time) for step, time in zip(steps, pods.value, strict=True)
        }
        super().__init__(api, namespace, lambda step, number: ends[step])


def tend(kubeconfig: Path, namespace: str, pods: Pods) -> None:
    """The kubelet's process."""
    asyncio.run(TimedKubelet(config.new_client_from_config(str(kubeconfig)), namespace, pods).run())


@dataclass
class Bench:
    """What all measurements share."""

    plane: ControlPlane
    operator: OperatorProcess
    wire: Wire
    progress: Progress

    @asynccontextmanager
    async def namespace(self, pods: Pods = Pods.AT_ONCE) -> AsyncIterator[str]:
        """One with a kubelet; it is taken away again."""
        name = f"test-{uuid4().hex[:8]}"
        await self.wire.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        kubelet = multiprocessing.get_context("spawn").Process(
            target=tend, args=(self.plane.kubeconfig, name, pods), daemon=True
        )
        kubelet.start()
        await asyncio.sleep(2.0)
        try:
            yield name
        finally:
            await self.wire.call("DELETE", f"/api/v1/namespaces/{name}")
            await self._until_gone(name)  # the kubelet ends pods that run
            kubelet.terminate()
            kubelet.join()
            kubelet.close()

    async def _until_gone(self, name: str) -> None:
        """What is still being deleted would slow down what is measured next."""
        while True:
            found = await self.wire.call("GET", "/api/v1/namespaces", fieldSelector=f"metadata.name={name}")
            if not found["items"]:
                return
            await asyncio.sleep(0.5)

    @asynccontextmanager
    async def running(self, operator: OperatorProcess) -> AsyncIterator[psutil.Process]:
        """The operator, from when it watches until it is stopped."""
        operator.start()
        assert operator.process is not None
        while (await asyncio.to_thread(operator.ask, "/readyz"))[0] != 200:
            await asyncio.sleep(0.1)
        await asyncio.sleep(2.0)
        try:
            yield psutil.Process(operator.process.pid)
        finally:
            await asyncio.to_thread(operator.stop)


def resource(namespace: str, name: str) -> Object:
    spec = wire_spec(annotation={"mode": "Template"})
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def plain_job(namespace: str, name: str, step: StepName) -> Object:
    """The child that the operator would make, without the operator."""
    start = StartAnnotation(1) if step == StepName.ANNOTATE else StartTraining(1, "c" * 64, HASH)
    owned = snapshot(namespace=namespace, name=name, uid=f"plain-{name}", profile=PROFILE)
    job = build_job(owned, build_step(owned, start, CLUSTER), Images("annotate:test", "train:test"))
    del job["metadata"]["ownerReferences"]
    return job


def resources(namespace: str) -> str:
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}"


def jobs(namespace: str) -> str:
    return f"/apis/batch/v1/namespaces/{namespace}/jobs"


async def in_parallel(work: Iterable[Any]) -> None:
    limit = asyncio.Semaphore(AT_ONCE)

    async def run(item: Any) -> None:
        async with limit:
            await item

    await asyncio.gather(*(run(item) for item in work))


async def count_until(
    bench: Bench, path: str, wanted: Callable[[Object], bool], count: int, bar: TaskID
) -> None:
    """Follow objects until so many were once as is wanted."""
    found: set[str] = set()
    async for _, body in bench.wire.follow(path):
        if wanted(body):
            found.add(body["metadata"]["name"])
            bench.progress.update(bar, completed=len(found))
            if len(found) == count:
                return
