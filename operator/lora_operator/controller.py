"""One job, once around: observe, decide, apply."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import IntEnum
from time import monotonic

import aiohttp
from kubernetes.aio.client.exceptions import ApiException
from pydantic import ValidationError

from lora_api.status import Phase, Progress
from lora_api.steps import PROGRESS_PORT

from . import metrics
from .apply import Cluster, RefusedError
from .cache import Cache
from .complaints import Complaints
from .decide import Decision, StartAnnotation, StartTraining, StopStep, decide
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
SETTLE_SECONDS = 1.0


@dataclass
class Controller:
    """Owns the queue; everything else it is given."""

    cluster: Cluster
    profiles: ProfilesFile
    cache: Cache = field(default_factory=Cache)
    queue: WorkQueue[Key] = field(init=False)

    def __post_init__(self) -> None:
        self.queue = WorkQueue(self.reconcile)
        self._complaints = Complaints(self.cluster.api)
        self._progress: dict[str, Progress] = {}
        self._doubted: set[Key] = set()
        """Jobs for which something may have been done already that their status does not tell of."""
        self._odd_since: dict[Key, float] = {}
        """Since when a job's children seem not to be as they should, on the monotonic clock."""
        self.cluster.made = self.cache.children.put
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
        doubted, looked = key in self._doubted, Look.NONE
        if not doubted and not self._settled(key, snapshot, decision):
            return None
        self._doubted.add(key)
        while (needed := look_before(snapshot, decision, doubted)) > looked:
            looked = needed
            found = await self.cache.mend_one(self.cluster.api, resource, children=needed == Look.CHILDREN)
            if found is None:
                return None
            if found.uid != resource.uid:
                self.queue.add(key)  # another one of this name, whose children were not looked for
                return None
            resource = found
            snapshot = await self._observe(resource)
            decision = decide(snapshot, datetime.now(UTC))
        try:
            written = await self.cluster.apply_decision(snapshot, decision, resource.resource_version)
        except RefusedError as error:
            decision = decide(replace(snapshot, refusal=error.refusal), datetime.now(UTC))
            written = await self.cluster.apply_decision(snapshot, decision, resource.resource_version)
        # the watch brings this later, and until then every other write would be refused as a conflict
        if written is not None and self.cache.resources.put(written) and decision.status.phase.terminal:
            # what has ended may have to be removed in time; all else would be decided again as it was
            self.queue.add(key)
        self._doubted.discard(key)
        return decision

    def _settled(self, key: Key, snapshot: Snapshot, decision: Decision) -> bool:
        """Whether a decision that children unknown here could make wrong has stood for a moment.

        A Job is told of by one watch and its pod by another: what does not fit together mostly does when both have
        caught up, and looking takes the API server as long as there are others of ours.
        """
        stops = bool(decision.actions) and all(isinstance(action, StopStep) for action in decision.actions)
        if stops or look_before(snapshot, decision, doubted=False) < Look.CHILDREN:
            self._odd_since.pop(key, None)
            return True
        left = self._odd_since.setdefault(key, monotonic()) + SETTLE_SECONDS - monotonic()
        if left > 0:
            self.queue.add_after(key, left)
            return False
        del self._odd_since[key]
        return True

    async def _observe(self, resource: Resource) -> Snapshot:
        snapshot = read_snapshot(
            resource,
            self.cache.children.of(resource.uid),
            self.cache.pods.of(resource.uid),
            self.profiles.current(),
        )
        silent = "" if resource.ended else unexplained(snapshot, datetime.now(UTC))
        hint = observe_hint(await self._complaints.about(resource.namespace, silent)) if silent else None
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
            self.queue.add((resource.namespace, resource.name))

    async def take_over(self) -> None:
        """See what there is before anything is decided; a process before this one may have left anything half done."""
        await self.resync_at_last()
        self._doubted.update((resource.namespace, resource.name) for resource in self.cache.unsettled())

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


class Look(IntEnum):
    """What is read before a decision is carried out."""

    NONE = 0
    RESOURCE = 1
    CHILDREN = 2
    """The resource's Jobs and pods, and then the resource."""


def look_before(snapshot: Snapshot, decision: Decision, doubted: bool) -> Look:
    """How closely to look: watches lag behind, each for itself.

    A Job made or deleted by mistake is a GPU pod too many or too few, why a Job failed is known by its pod, and a
    pod may be known before its Job is. An old view of the resource is found out by the status write where that comes
    first, at an end; nobody else can have done anything for one that has no status yet.

    Args:
        doubted: something may have been done already that the status does not tell of.
    """
    if not _is_weighty(snapshot, decision):
        return Look.NONE
    if doubted or _depends_on_children(snapshot, decision):
        return Look.CHILDREN
    if snapshot.status.start_time is None or decision.status.phase.terminal:
        return Look.NONE
    return Look.RESOURCE


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
