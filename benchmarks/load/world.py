"""The environment of the measurements: a control plane with simulated nodes, an operator, and jobs."""

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
from kubernetes import client, config
from rich.progress import Progress, TaskID

from lora_api import API_VERSION, GROUP, KIND, PLURAL, VERSION
from lora_api.stages import StageName
from lora_operator.decide import StartAnnotation, StartTraining
from lora_operator.manifests import CLUSTER, build_job, build_stage_config
from lora_operator.settings import Images
from tests.support.builders import HASH, PROFILE, snapshot, wire_spec
from tests.support.cluster.harness import OperatorProcess
from tests.support.cluster.kubelet import FakeKubelet, succeed
from tests.support.cluster.plane import ControlPlane
from tests.support.cluster.wire import Object, Wire

MAX_REQUESTS = 32
"""Maximum number of requests in parallel."""
MEBIBYTE = 2**20


class Pods(Enum):
    """The run times of pods: seconds of an annotation, and of a training."""

    AT_ONCE = (0.0, 0.0)
    """Pods end as soon as they start, so that only the control plane and the operator take time."""
    SHORT = (10.0, 60.0)
    """About the times of the quickstart, which trains 300 steps at 64 pixels on a CPU. Real models take minutes."""
    ENDLESS = (0.0, math.inf)
    """Trainings never end."""


class TimedKubelet(FakeKubelet):
    """A kubelet that ends every pod successfully after its run time."""

    tick = 0.1  # seconds; longer than in tests, since thousands of pods may run

    def __init__(self, api: client.ApiClient, namespace: str, pods: Pods) -> None:
        stages = (StageName.ANNOTATE, StageName.TRAIN)
        ends = {
            stage: replace(succeed(stage, 1), seconds=time)
            for stage, time in zip(stages, pods.value, strict=True)
        }
        super().__init__(api, namespace, lambda stage, number: ends[stage])


def run_kubelet(kubeconfig: Path, namespace: str, pods: Pods) -> None:
    """Run a kubelet, in a process of its own."""
    asyncio.run(TimedKubelet(config.new_client_from_config(str(kubeconfig)), namespace, pods).run())


@dataclass
class Bench:
    """The environment that all measurements share."""

    plane: ControlPlane
    operator: OperatorProcess
    wire: Wire
    progress: Progress

    @asynccontextmanager
    async def namespace(self, pods: Pods = Pods.AT_ONCE) -> AsyncIterator[str]:
        """Create a namespace with a kubelet. Both are removed at the end."""
        name = f"test-{uuid4().hex[:8]}"
        await self.wire.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        kubelet = multiprocessing.get_context("spawn").Process(
            target=run_kubelet, args=(self.plane.kubeconfig, name, pods), daemon=True
        )
        kubelet.start()
        await asyncio.sleep(2.0)
        try:
            yield name
        finally:
            await self.wire.call("DELETE", f"/api/v1/namespaces/{name}")
            await self._wait_deleted(name)  # the kubelet must run until then, to end the remaining pods
            kubelet.terminate()
            kubelet.join()
            kubelet.close()

    async def _wait_deleted(self, name: str) -> None:
        """Wait until a namespace is deleted. Its deletion would slow down the next measurement."""
        while True:
            listed = await self.wire.call("GET", "/api/v1/namespaces", fieldSelector=f"metadata.name={name}")
            if not listed["items"]:
                return
            await asyncio.sleep(0.5)

    @asynccontextmanager
    async def running(self, operator: OperatorProcess) -> AsyncIterator[psutil.Process]:
        """Run the operator. Yields its process when it is ready, and stops it at the end."""
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
    """Return a LoraTrainingJob."""
    spec = wire_spec(annotation={"mode": "Template"})
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def plain_job(namespace: str, name: str, stage: StageName) -> Object:
    """Return the child Job that the operator would create, without an owner."""
    start = StartAnnotation(1) if stage == StageName.ANNOTATE else StartTraining(1, "c" * 64, HASH)
    owned = snapshot(namespace=namespace, name=name, uid=f"plain-{name}", profile=PROFILE)
    job = build_job(owned, build_stage_config(owned, start, CLUSTER), Images("annotate:test", "train:test"))
    del job["metadata"]["ownerReferences"]
    return job


def resources(namespace: str) -> str:
    """Return the API path of a namespace's LoraTrainingJobs."""
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}"


def jobs(namespace: str) -> str:
    """Return the API path of a namespace's batch Jobs."""
    return f"/apis/batch/v1/namespaces/{namespace}/jobs"


async def in_parallel(coroutines: Iterable[Any]) -> None:
    """Await coroutines, at most MAX_REQUESTS at a time."""
    limit = asyncio.Semaphore(MAX_REQUESTS)

    async def run(item: Any) -> None:
        async with limit:
            await item

    await asyncio.gather(*(run(item) for item in coroutines))


async def count_until(
    bench: Bench, path: str, condition: Callable[[Object], bool], count: int, bar: TaskID
) -> None:
    """Watch objects until `count` of them have met a condition at some time."""
    names: set[str] = set()
    async for _, body in bench.wire.follow(path):
        if condition(body):
            names.add(body["metadata"]["name"])
            bench.progress.update(bar, completed=len(names))
            if len(names) == count:
                return
