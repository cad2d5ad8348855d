"""One job, once around: observe, decide, apply."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from time import monotonic

import aiohttp
from kubernetes.aio.client.exceptions import ApiException
from pydantic import ValidationError

from lora_api.status import Phase, Progress
from lora_api.steps import PROGRESS_PORT

from . import metrics
from .apply import Cluster, RefusedError
from .cache import Cache
from .decide import Decision, StartAnnotation, StartTraining, decide
from .observe import Resource, StepPod, observe_hint, read_snapshot, unexplained
from .settings import ProfilesFile
from .snapshot import Snapshot
from .workqueue import WorkQueue

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Namespace and name of a job."""

POLL_SECONDS = 10.0
POLL_TIMEOUT = aiohttp.ClientTimeout(total=3)
POLL_CONCURRENCY = 32
RESYNC_SECONDS = 300.0
RELIST_SECONDS = 2.0
RECONCILE_SECONDS = 60.0


@dataclass
class Controller:
    """Owns the queue; everything else it is given."""

    cluster: Cluster
    profiles: ProfilesFile
    cache: Cache = field(default_factory=Cache)
    queue: WorkQueue[Key] = field(init=False)

    def __post_init__(self) -> None:
        self.queue = WorkQueue(self.reconcile)
        self._progress: dict[str, Progress] = {}
        self._doubted: set[Key] = set()
        """Jobs for which something may have been done already that their status does not tell of."""
        self.relisted = asyncio.Event()
        """Set when a watch began anew: what was deleted meanwhile it does not tell."""
        self.ticked = monotonic()
        """When the controller last moved, on the monotonic clock."""

    async def reconcile(self, key: Key) -> None:
        """Bring one job a step further. Safe to call at any time, any number of times."""
        resource = self.cache.resource(key)
        if resource is None:
            return
        with metrics.RECONCILE_SECONDS.time(), metrics.RECONCILE_ERRORS.count_exceptions():
            async with asyncio.timeout(RECONCILE_SECONDS):
                decision = await self._decide_and_apply(resource)
        if decision is None:
            return
        if decision.status.phase.terminal:
            self._progress.pop(resource.uid, None)
        if decision.wake_at is not None:
            self.queue.add_after(key, (decision.wake_at - datetime.now(UTC)).total_seconds())

    async def _decide_and_apply(self, resource: Resource) -> Decision | None:
        """None when the resource is gone."""
        key = (resource.namespace, resource.name)
        snapshot = await self._observe(resource)
        decision = decide(snapshot, datetime.now(UTC))
        children = key in self._doubted
        untouched = snapshot.status.start_time is None and not children
        self._doubted.add(key)
        while _is_weighty(snapshot, decision) and not untouched:
            # watches lag behind, each for itself: a Job made or deleted by mistake is a GPU pod too many or too
            # few, why a Job failed is known by its pod, and a pod may be known before its Job is
            children = children or _depends_on_children(snapshot, decision)
            found = await self.cache.mend_one(self.cluster.api, resource, children)
            if found is None:
                return None
            if found.uid != resource.uid:
                self.queue.add(key)  # another one of this name, whose children were not looked for
                return None
            resource = found
            snapshot = await self._observe(resource)
            decision = decide(snapshot, datetime.now(UTC))
            if children or not _depends_on_children(snapshot, decision):
                break
        try:
            written = await self.cluster.apply_decision(snapshot, decision, resource.resource_version)
        except RefusedError as error:
            decision = decide(replace(snapshot, refusal=error.refusal), datetime.now(UTC))
            written = await self.cluster.apply_decision(snapshot, decision, resource.resource_version)
        if written is not None and self.cache.resources.put(written):
            # the watch brings this later, and until then every other write would be refused as a conflict
            self.queue.add(key)
        self._doubted.discard(key)
        return decision

    async def _observe(self, resource: Resource) -> Snapshot:
        snapshot = read_snapshot(
            resource,
            self.cache.children.of(resource.uid),
            self.cache.pods.of(resource.uid),
            self.profiles.current(),
        )
        silent = "" if resource.ended else unexplained(snapshot, datetime.now(UTC))
        hint = observe_hint(await self.cluster.events_of(resource.namespace, silent)) if silent else None
        return replace(snapshot, hint=hint, progress=self._progress.get(resource.uid))

    async def poll_forever(self) -> None:
        """Ask the running pods how far they are; a pod that does not answer is left alone."""
        async with aiohttp.ClientSession(timeout=POLL_TIMEOUT) as session:
            limit = asyncio.Semaphore(POLL_CONCURRENCY)
            while True:
                self.ticked = monotonic()
                running = [item for item in self.cache.pods if item.pod.running and item.pod.ip]
                await asyncio.gather(*(self._poll(session, limit, item) for item in running))
                await asyncio.sleep(POLL_SECONDS)

    async def _poll(self, session: aiohttp.ClientSession, limit: asyncio.Semaphore, item: StepPod) -> None:
        self.ticked = monotonic()
        try:
            async with limit, session.get(f"http://{item.pod.ip}:{PROGRESS_PORT}/progress") as response:
                progress = Progress.model_validate_json(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValidationError):
            return
        if progress != self._progress.get(item.uid):
            self._progress[item.uid] = progress
            self.queue.add((item.namespace, item.resource_name))

    async def resync(self) -> None:
        """See for ourselves what there is, and look at every job that may have to move on."""
        await self.cache.mend(self.cluster.api)
        metrics.LAST_RESYNC.set_to_current_time()
        for resource in self.cache.unsettled():
            key = (resource.namespace, resource.name)
            self._doubted.add(key)
            self.queue.add(key)

    async def resync_at_last(self) -> None:
        """The same, as often as it takes."""
        while True:
            try:
                return await self.resync()
            except (ApiException, aiohttp.ClientError, OSError, ValueError) as error:
                log.warning("could not list what there is, and shall again: %r", error)
                await asyncio.sleep(RELIST_SECONDS)

    async def resync_forever(self) -> None:
        """Whatever the watches say, or do not say."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.relisted.wait(), RESYNC_SECONDS)
                await asyncio.sleep(RELIST_SECONDS)
            self.relisted.clear()
            await self.resync_at_last()


def _is_weighty(snapshot: Snapshot, decision: Decision) -> bool:
    """Whether a decision made on an old view could do harm."""
    ends = decision.status.phase.terminal and not snapshot.status.phase.terminal
    return bool(decision.actions or ends or snapshot.leftovers)


def _depends_on_children(snapshot: Snapshot, decision: Decision) -> bool:
    """Whether a Job or a pod that no watch has told of yet could make it wrong.

    None can where a step starts for the first time, nor where the last words of one say that all is well.
    """
    status = snapshot.status
    first = {StartAnnotation: status.captions is None, StartTraining: status.training is None}
    starts_first = all(first.get(type(action), False) for action in decision.actions)
    return bool(snapshot.leftovers) or not starts_first or decision.status.phase == Phase.FAILED
