"""One job, once around: observe, decide, apply."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from time import monotonic

import aiohttp
from pydantic import ValidationError

from lora_api.status import Progress
from lora_api.steps import PROGRESS_PORT

from . import metrics
from .apply import Cluster, NameConflictError
from .decide import Decision, decide
from .observe import Resource, StepPod, observe_hint, read_snapshot, unexplained
from .settings import ProfilesFile
from .snapshot import Child, Snapshot
from .workqueue import WorkQueue

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Namespace and name of a job."""

POLL_SECONDS = 10.0
POLL_TIMEOUT = aiohttp.ClientTimeout(total=3)
POLL_CONCURRENCY = 32
RESYNC_SECONDS = 300.0
RECONCILE_SECONDS = 60.0


@dataclass
class Indexes:
    """What the watches have seen, kept by kopf."""

    resources: Mapping[Key, Collection[Resource]]
    children: Mapping[str, Collection[Child]]
    """By the UID of the resource that they belong to, as are the pods."""
    pods: Mapping[str, Collection[StepPod]]


@dataclass
class Controller:
    """Owns the queue; everything else it is given."""

    cluster: Cluster
    profiles: ProfilesFile
    indexes: Indexes
    queue: WorkQueue[Key] = field(init=False)

    def __post_init__(self) -> None:
        self.queue = WorkQueue(self.reconcile)
        self._progress: dict[str, Progress] = {}
        self.ticked = monotonic()
        """When the controller last moved, on the monotonic clock."""

    async def reconcile(self, key: Key) -> None:
        """Bring one job a step further. Safe to call at any time, any number of times."""
        resource = next(iter(self.indexes.resources.get(key, ())), None)
        if resource is None:
            return
        with metrics.RECONCILE_SECONDS.time(), metrics.RECONCILE_ERRORS.count_exceptions():
            async with asyncio.timeout(RECONCILE_SECONDS):
                snapshot = await self._observe(resource)
                decision = await self._apply(snapshot, resource.resource_version)
        if decision.status.phase.terminal:
            self._progress.pop(resource.uid, None)
        if decision.wake_at is not None:
            self.queue.add_after(key, (decision.wake_at - datetime.now(UTC)).total_seconds())

    async def _observe(self, resource: Resource) -> Snapshot:
        snapshot = read_snapshot(
            resource,
            self.indexes.children.get(resource.uid, ()),
            self.indexes.pods.get(resource.uid, ()),
            self.profiles.current(),
        )
        silent = "" if resource.ended else unexplained(snapshot, datetime.now(UTC))
        hint = observe_hint(await self.cluster.events_of(resource.namespace, silent)) if silent else None
        return replace(snapshot, hint=hint, progress=self._progress.get(resource.uid))

    async def _apply(self, snapshot: Snapshot, version: str) -> Decision:
        decision = decide(snapshot, datetime.now(UTC))
        try:
            await self.cluster.apply_decision(snapshot, decision, version)
        except NameConflictError as error:
            decision = decide(replace(snapshot, conflict=error.name), datetime.now(UTC))
            await self.cluster.apply_decision(snapshot, decision, version)
        return decision

    async def poll_forever(self) -> None:
        """Ask the running pods how far they are; a pod that does not answer is left alone."""
        async with aiohttp.ClientSession(timeout=POLL_TIMEOUT) as session:
            limit = asyncio.Semaphore(POLL_CONCURRENCY)
            while True:
                self.ticked = monotonic()
                running = [
                    (uid, item)
                    for uid in list(self.indexes.pods)
                    for item in self.indexes.pods.get(uid, ())
                    if item.pod.running and item.pod.ip
                ]
                await asyncio.gather(*(self._poll(session, limit, uid, item) for uid, item in running))
                await asyncio.sleep(POLL_SECONDS)

    async def _poll(
        self, session: aiohttp.ClientSession, limit: asyncio.Semaphore, uid: str, item: StepPod
    ) -> None:
        self.ticked = monotonic()
        try:
            async with limit, session.get(f"http://{item.pod.ip}:{PROGRESS_PORT}/progress") as response:
                progress = Progress.model_validate_json(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValidationError):
            return
        if progress != self._progress.get(uid):
            self._progress[uid] = progress
            self.queue.add((item.namespace, item.resource_name))

    async def resync_forever(self) -> None:
        """Look at every job that has not ended once in a while, whatever the watches say."""
        while True:
            metrics.LAST_RESYNC.set_to_current_time()
            everything = chain.from_iterable(list(self.indexes.resources.values()))
            for resource in list(everything):
                if not resource.ended:
                    self.queue.add((resource.namespace, resource.name))
            await asyncio.sleep(RESYNC_SECONDS)
