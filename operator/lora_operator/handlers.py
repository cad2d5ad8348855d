"""Handlers that store watch events in the cache and queue the jobs concerned, and the operator's background tasks."""

from __future__ import annotations

import asyncio
from collections import Counter
from time import monotonic
from typing import Any

from . import metrics, names
from .api import BATCH_JOBS, PODS, RESOURCES, Api, Object
from .apply import Cluster
from .controller import DEBOUNCE_SECONDS, Controller
from .indexer import Indexer
from .kopf_adapter import Watch
from .observe import is_complete, is_ending
from .settings import ProfilesFile, Settings

HEARTBEAT_SECONDS = 60.0
"""Time without a heartbeat of the poller after which the process is unhealthy."""


class EventHandlers:
    """Feeds the controller with events and reports whether it is healthy."""

    def __init__(self, settings: Settings, profiles: ProfilesFile, api: Api) -> None:
        self._controller = Controller(Cluster(api, settings.images), profiles, settings.webhook_secrets)
        self._tasks: list[asyncio.Task[None]] = []
        self._preparing = False
        cache = self._controller.cache
        self.watches = (
            Watch(RESOURCES, self._receive_resource, cache.resources.holds),
            Watch(BATCH_JOBS, self._receive_child_job, cache.children.holds),
            Watch(PODS, self._receive_pod, cache.pods.holds),
        )

    async def prepare(self) -> None:
        """List everything before the first decision.

        Raises:
            NotServedError: when the CustomResourceDefinition is not installed.
        """
        self._preparing = True
        await self._controller.take_over()
        self._preparing = False

    def start(self) -> None:
        """Start the workers and the periodic tasks."""
        self._controller.queue.start()
        self._tasks = [
            asyncio.create_task(self._controller.poller.run_forever()),
            asyncio.create_task(self._controller.resync_forever()),
            asyncio.create_task(self._controller.admit_forever()),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._controller.queue.stop()
        await self._controller.webhooks.stop()

    def _receive_resource(self, kind: str | None, body: Object) -> None:
        if self._store(self._controller.cache.resources, kind, body):
            self._controller.queue.add((body["metadata"]["namespace"], body["metadata"]["name"]))

    def _receive_child_job(self, kind: str | None, body: Object) -> None:
        if self._store(self._controller.cache.children, kind, body):
            # the end of its pod was reported before, and reconciled at once
            self._enqueue_owner(body, DEBOUNCE_SECONDS if kind != "DELETED" and is_complete(body) else 0.0)

    def _receive_pod(self, kind: str | None, body: Object) -> None:
        if self._store(self._controller.cache.pods, kind, body):
            self._enqueue_owner(body, 0.0 if kind == "DELETED" or is_ending(body) else DEBOUNCE_SECONDS)

    def _store(self, indexer: Indexer[Any], kind: str | None, body: Object) -> bool:
        """Put an event's object into the cache; False when it changes nothing there."""
        if kind == "DELETED":
            indexer.delete(body)
            return True
        if kind is None:
            # a new list: the watch was interrupted, and deletions in between were not reported
            self._controller.relisted.set()
        return indexer.update(body)

    def _enqueue_owner(self, body: Object, seconds: float = 0.0) -> None:
        if name := body["metadata"].get("annotations", {}).get(names.OWNER_NAME):
            self._controller.queue.add_after((body["metadata"]["namespace"], name), seconds)

    def liveness_error(self) -> str:
        """Return the reason to restart this process; empty when it is healthy.

        A watch that fails is not among the reasons: it ends the process by itself.
        """
        if any(task.done() for task in self._tasks):
            return "a background task has ended"
        if self._tasks and monotonic() - self._controller.poller.last_heartbeat > HEARTBEAT_SECONDS:
            return f"no heartbeat for {HEARTBEAT_SECONDS:.0f} s"
        return ""

    def readiness_error(self) -> str:
        """Return the reason why jobs are not reconciled yet; empty when they are, or when another replica leads."""
        return "listing the existing jobs" if self._preparing else ""

    def update_gauges(self) -> None:
        metrics.QUEUE_DEPTH.set(len(self._controller.queue))
        metrics.JOBS_BY_PHASE.clear()
        for phase, count in Counter(resource.phase for resource in self._controller.cache.resources).items():
            metrics.JOBS_BY_PHASE.labels(phase).set(count)
