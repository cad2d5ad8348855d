"""kopf wiring, and nothing else: events in, keys on the queue out."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import kopf
from kopf import OperatorRegistry

from . import metrics, names
from .api import JOBS, PAGE_SIZE, PODS, RESOURCES, Api, Object
from .apply import Cluster
from .cache import Shelf
from .controller import Controller
from .memoryless import NoDiffs, NoProgress
from .settings import ProfilesFile, Settings

TOKEN_LIFE = timedelta(minutes=10)
TICK_SECONDS = 60.0


class Wiring:
    """One operator at work: the registry that kopf reads, and the tasks beside it while kopf runs."""

    def __init__(self, settings: Settings, profiles: ProfilesFile, api: Api) -> None:
        self._controller = Controller(Cluster(api, settings.images), profiles)
        self._tasks: list[asyncio.Task[None]] = []
        self._preparing = False
        self.registry = OperatorRegistry()
        kopf.on.login(registry=self.registry)(_login)
        kopf.on.startup(registry=self.registry)(self._start)
        kopf.on.cleanup(registry=self.registry)(self._stop)
        for kind, see in ((RESOURCES, self._see_resource), (JOBS, self._see_job), (PODS, self._see_pod)):
            watched = kopf.on.event(
                kind.group, kind.version, kind.plural, labels=kind.labels or None, registry=self.registry
            )
            watched(see)

    async def prepare(self) -> None:
        """See what there is before anything is decided.

        Raises:
            NotServedError: when our kind of resource is not installed.
        """
        self._preparing = True
        await self._controller.take_over()
        self._preparing = False

    async def _start(self, settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.watching.server_timeout = 600
        settings.watching.client_timeout = 660
        settings.watching.connect_timeout = 30
        settings.watching.chunk_size = PAGE_SIZE
        settings.queueing.idle_timeout = 0.1
        settings.persistence.diffbase_storage = NoDiffs()
        settings.persistence.progress_storage = NoProgress()
        self._controller.queue.start()
        self._tasks = [
            asyncio.create_task(self._controller.poll_forever()),
            asyncio.create_task(self._controller.resync_forever()),
        ]

    async def _stop(self, **_: Any) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._controller.queue.stop()

    async def _see_resource(self, event: kopf.RawEvent, **_: Any) -> None:
        if body := self._seen(self._controller.cache.resources, event):
            self._controller.queue.add((body["metadata"]["namespace"], body["metadata"]["name"]))

    async def _see_job(self, event: kopf.RawEvent, **_: Any) -> None:
        self._look_at_owner(self._seen(self._controller.cache.children, event))

    async def _see_pod(self, event: kopf.RawEvent, **_: Any) -> None:
        self._look_at_owner(self._seen(self._controller.cache.pods, event))

    def _seen(self, shelf: Shelf[Any], event: kopf.RawEvent) -> Object | None:
        """Keep what an event brings; None when that is known already."""
        body: Object = event["object"]
        if event["type"] == "DELETED":
            shelf.drop(body)
            return body
        if event["type"] is None:
            self._controller.relisted.set()
        return body if shelf.put(body) else None

    def _look_at_owner(self, body: Object | None) -> None:
        if body is not None and (name := body["metadata"].get("annotations", {}).get(names.JOB_NAME)):
            self._controller.queue.add((body["metadata"]["namespace"], name))

    def sick(self) -> str:
        """Why this process should be ended; empty when it should not. A watch that breaks ends it by itself."""
        if any(task.done() for task in self._tasks):
            return "a task has died"
        if self._tasks and monotonic() - self._controller.ticked > TICK_SECONDS:
            return f"nothing has moved for {TICK_SECONDS:.0f} s"
        return ""

    def unready(self) -> str:
        """What keeps jobs from being looked after; empty when nothing does, or when this one stands by."""
        return "still listing what there is" if self._preparing else ""

    def measure(self) -> None:
        """Bring the gauges up to date."""
        metrics.QUEUE_DEPTH.set(len(self._controller.queue))
        metrics.JOBS.clear()
        for phase, count in Counter(resource.phase for resource in self._controller.cache.resources).items():
            metrics.JOBS.labels(phase).set(count)


def _login(**arguments: Any) -> kopf.ConnectionInfo | None:
    found = kopf.login_with_service_account(**arguments)
    if found is None:
        return kopf.login_with_kubeconfig(**arguments)
    # by the address that every pod is given, not by a DNS name; and read the token anew as it rotates
    server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    return replace(found, server=server, expiration=datetime.now(UTC) + TOKEN_LIFE)
