"""kopf wiring, and nothing else: indexes and events in, keys on the queue out."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from time import monotonic
from typing import Any

import kopf
from kopf import OperatorRegistry
from kopf._cogs.structs.references import Insights
from kubernetes.aio import client

from lora_api import GROUP, PLURAL, VERSION

from . import metrics, names
from .apply import Cluster
from .controller import Controller, Indexes, Key
from .observe import Resource, StepPod, observe_job, observe_step_pod
from .settings import ProfilesFile, Settings
from .snapshot import Child

TOKEN_LIFE = timedelta(minutes=10)
TICK_SECONDS = 60.0
NEEDED = {PLURAL, "jobs", "pods"}
OURS = {names.MANAGED_BY: names.OPERATOR}


class Wiring:
    """One operator at work: the registry that kopf reads, and the tasks beside it while kopf runs."""

    def __init__(self, settings: Settings, profiles: ProfilesFile, api: client.ApiClient) -> None:
        self._settings = settings
        self._profiles = profiles
        self._api = api
        self._controller: Controller | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.insights = Insights()
        """Which kinds of objects kopf has found to be served."""
        self.registry = OperatorRegistry()
        self._register()

    def _register(self) -> None:
        registry = self.registry
        kopf.on.login(registry=registry)(_login)
        kopf.on.startup(registry=registry)(self._start)
        kopf.on.cleanup(registry=registry)(self._stop)
        kopf.index(GROUP, VERSION, PLURAL, id="resources", registry=registry)(_index_resource)
        kopf.index("batch", "v1", "jobs", labels=OURS, id="children", registry=registry)(_index_child)
        kopf.index("", "v1", "pods", labels=OURS, id="pods", registry=registry)(_index_pod)
        kopf.on.event(GROUP, VERSION, PLURAL, id="resource", registry=registry)(self._on_resource)
        kopf.on.event("batch", "v1", "jobs", labels=OURS, id="child", registry=registry)(self._on_child)
        kopf.on.event("", "v1", "pods", labels=OURS, id="pod", registry=registry)(self._on_child)

    async def _start(self, settings: kopf.OperatorSettings, **indexes: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.watching.server_timeout = 600
        settings.watching.client_timeout = 660
        settings.watching.connect_timeout = 30
        settings.watching.chunk_size = 500
        seen = Indexes(indexes["resources"], indexes["children"], indexes["pods"])
        cluster = Cluster(self._api, self._settings.images)
        self._controller = Controller(cluster, self._profiles, seen)
        self._controller.queue.start()
        self._tasks = [
            asyncio.create_task(self._controller.poll_forever()),
            asyncio.create_task(self._controller.resync_forever()),
        ]

    async def _stop(self, **_: Any) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._controller is not None:
            await self._controller.queue.stop()

    def sick(self) -> str:
        """Why this process should be ended; empty when it should not. A watch that breaks ends it by itself."""
        if any(task.done() for task in self._tasks):
            return "a task has died"
        if self._controller is not None and monotonic() - self._controller.ticked > TICK_SECONDS:
            return f"nothing has moved for {TICK_SECONDS:.0f} s"
        missing = NEEDED - {resource.plural for resource in self.insights.watched_resources}
        if self.insights.ready_resources.is_set() and missing:
            return f"the API server does not serve {', '.join(sorted(missing))}: is the CRD installed?"
        return ""

    def unready(self) -> str:
        """What keeps jobs from being looked after; empty when nothing does, or when this one stands by."""
        starting = self._controller is not None and not self.insights.ready_resources.is_set()
        return "still asking what the API server serves" if starting else ""

    def measure(self) -> None:
        """Bring the gauges up to date."""
        if self._controller is None:
            return
        metrics.QUEUE_DEPTH.set(len(self._controller.queue))
        metrics.JOBS.clear()
        everything = chain.from_iterable(list(self._controller.indexes.resources.values()))
        for phase, count in Counter(resource.phase for resource in everything).items():
            metrics.JOBS.labels(phase).set(count)

    async def _on_resource(self, namespace: str | None, name: str, **_: Any) -> None:
        self._add((str(namespace), name))

    async def _on_child(self, namespace: str | None, annotations: Mapping[str, str], **_: Any) -> None:
        if name := annotations.get(names.JOB_NAME):
            self._add((str(namespace), name))

    def _add(self, key: Key) -> None:
        assert self._controller is not None
        self._controller.queue.add(key)


def _login(**arguments: Any) -> kopf.ConnectionInfo | None:
    found = kopf.login_with_service_account(**arguments)
    if found is None:
        return kopf.login_with_kubeconfig(**arguments)
    # by the address that every pod is given, not by a DNS name; and read the token anew as it rotates
    server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    return replace(found, server=server, expiration=datetime.now(UTC) + TOKEN_LIFE)


# kopf runs what is not async in threads; these are too small for that


async def _index_resource(namespace: str | None, name: str, body: kopf.Body, **_: Any) -> dict[Key, Resource]:
    return {(str(namespace), name): Resource.of(body)}


async def _index_child(labels: Mapping[str, str], body: kopf.Body, **_: Any) -> dict[str, Child]:
    return {labels[names.JOB_UID]: observe_job(body)}


async def _index_pod(labels: Mapping[str, str], body: kopf.Body, **_: Any) -> dict[str, StepPod]:
    return {labels[names.JOB_UID]: observe_step_pod(body)}
