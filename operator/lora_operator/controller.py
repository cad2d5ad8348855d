"""The reconcile loop: observe, decide, apply, and the tasks that run periodically."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path

import aiohttp
from kubernetes.aio.client.exceptions import ApiException

from lora_api.stages import StageName
from lora_api.status import Progress, WebhookStatus

from . import metrics
from .apply import Cluster, RefusedError
from .decide import WEBHOOK_GRACE, Decision, decide
from .indexer import Cache
from .observe import Resource, StagePod, find_unexplained, observe_hint, parse_time, read_snapshot
from .poller import Poller
from .running_limits import ADMISSION_SECONDS, RunningLimits
from .settings import ProfilesFile, Settings
from .snapshot import Key, Snapshot
from .staleness import Staleness, must_read_again
from .warning_events import WarningEvents
from .webhooks import Webhooks, message_id
from .workqueue import WorkQueue, describe_error

log = logging.getLogger(__name__)

RESYNC_SECONDS = 300.0
"""Time between two complete lists."""
RELIST_DELAY = 2.0
"""Time, in seconds, before a list that failed is retried, and before a list after an interrupted watch: usually all
watches are interrupted together."""
RECONCILE_SECONDS = 60.0
"""Time limit for one reconcile."""
DEBOUNCE_SECONDS = 2.0
"""Time until a job is reconciled for an event that needs no action, so that one reconcile handles several of them. A pod
that is created, scheduled and started causes three."""


@dataclass
class Controller:
    """Reconciles jobs. Keys come from `queue`, which never processes one key twice at a time; `cluster` carries out decisions."""

    cluster: Cluster
    profiles: ProfilesFile
    webhook_secrets: Path = Settings.webhook_secrets
    cache: Cache = field(default_factory=Cache)
    queue: WorkQueue[Key] = field(init=False)

    def __post_init__(self) -> None:
        self.queue = WorkQueue(self.reconcile)
        self._warning_events = WarningEvents(self.cluster.api)
        self._progress: dict[str, Progress] = {}
        """The last report of each pod, by its UID."""
        self._staleness: Staleness[Key] = Staleness()
        self.limits = RunningLimits(self.cache, self.profiles, self.queue.add)
        # a child Job that was just created is known before its watch reports it
        self.cluster.on_created = self.cache.children.update
        self.webhooks = Webhooks(self.webhook_secrets, self.queue.add)
        self.cluster.on_webhook = self.webhooks.send
        self.relisted = asyncio.Event()
        """Set when a watch has started again. Deletions in between were not reported, so everything must be listed."""
        self.poller = Poller(self.cache.running_pods, self._record_progress)

    async def reconcile(self, key: Key) -> None:
        """Reconcile one job once. Can be called at any time and any number of times."""
        resource = self.cache.resource(key)
        if resource is None:
            self.webhooks.forget(key)
            self._staleness.forget_refused(key)
            return
        with metrics.RECONCILE_SECONDS.time(), metrics.RECONCILE_ERRORS.count_exceptions():
            try:
                async with asyncio.timeout(RECONCILE_SECONDS):
                    decision = await self._reconcile(key, resource)
            except Exception:
                self.limits.record_error(resource)
                raise
        if decision is None:
            return
        if decision.requeue_at is not None:
            self.queue.add_after(key, (decision.requeue_at - datetime.now(UTC)).total_seconds())

    async def _reconcile(self, key: Key, resource: Resource) -> Decision | None:
        """Observe, decide and apply; None when nothing was decided, because the resource is gone or data is stale."""
        snapshot = await self._observe(resource)
        decision = decide(snapshot, datetime.now(UTC))
        unverified = self._staleness.is_unverified(key)
        known = not unverified and self._staleness.was_refused(key, decision)
        # an unverified job is listed below in any case, so it need not wait for the watches to agree
        if not (unverified or known) and (wait := self._staleness.settle_seconds(key, snapshot, decision)):
            self.queue.add_after(key, wait)
            return None
        # until the status is written, an exception anywhere below leaves the job unverified
        self._staleness.mark_unverified([key])
        if not known and must_read_again(snapshot, decision, unverified):
            current = await self.cache.refresh(self.cluster.api, resource)
            if current is None:
                return None
            if current.uid != resource.uid:
                self.queue.add(key)  # a new resource of the same name, whose children were not listed
                return None
            resource = current
            snapshot = await self._observe(resource)
            decision = decide(snapshot, datetime.now(UTC))
        snapshot, decision = await self._apply(key, resource, snapshot, decision)
        self._staleness.mark_verified(key)
        self.limits.record(resource, snapshot, decision)
        return decision

    async def _apply(
        self, key: Key, resource: Resource, snapshot: Snapshot, decision: Decision
    ) -> tuple[Snapshot, Decision]:
        """Carry out a decision; return the one that was carried out in the end, and what it was made from."""
        version = resource.resource_version
        try:
            written = await self.cluster.apply_decision(snapshot, decision, version)
            if decision.actions:
                self._staleness.forget_refused(key)
        except RefusedError as error:
            self._staleness.mark_refused(key, decision)
            # with the refusal in the snapshot, the decision does not create the child Job again
            snapshot = replace(snapshot, refusal=error.refusal)
            decision = decide(snapshot, datetime.now(UTC))
            written = await self.cluster.apply_decision(snapshot, decision, version)
        # Store the new status now. The watch reports it later, and until then every write would be a conflict.
        if written is not None and self.cache.resources.update(written) and decision.status.phase.terminal:
            # A job that has just ended is reconciled again for its time to live. For any other job the decision would
            # be the same.
            self.queue.add_after(key, DEBOUNCE_SECONDS)
        return snapshot, decision

    async def _observe(self, resource: Resource) -> Snapshot:
        """Build the snapshot of a job from the cache. Events are read only where nothing else explains a wait."""
        snapshot = read_snapshot(
            resource,
            self.cache.children.by_owner(resource.owner),
            self.cache.pods.by_owner(resource.owner),
            self.profiles.current(),
        )
        uid = "" if resource.ended else find_unexplained(snapshot, datetime.now(UTC))
        hint = observe_hint(await self._warning_events.about(resource.namespace, uid)) if uid else None
        capacity, refusal = self.limits.check(resource)
        return replace(
            snapshot,
            hint=hint,
            progress=self._latest_progress(snapshot),
            capacity=capacity,
            refusal=refusal,
            delivery=self._delivery(snapshot),
        )

    def _delivery(self, snapshot: Snapshot) -> WebhookStatus | None:
        """Return the result of the webhook that announces the end of a job; None while there is none."""
        if snapshot.status.finish_time is None:
            return None
        key = (snapshot.namespace, snapshot.name)
        if snapshot.status.webhook is not None:
            self.webhooks.forget(key)
        return self.webhooks.result(key, message_id(snapshot.uid, snapshot.status))

    def _unannounced(self) -> Iterator[Resource]:
        """List the jobs that have ended, whose webhook an earlier process may not have delivered."""
        profiles, now = self.profiles.current(), datetime.now(UTC)
        for resource in self.cache.resources:
            profile = profiles.get(resource.profile)
            if profile is None or profile.webhook is None or not resource.ended or resource.announced:
                continue
            finished = parse_time(resource.finished_at)
            retry_time = timedelta(seconds=profile.webhook.retry_seconds) + WEBHOOK_GRACE
            if finished is not None and now - finished < retry_time:
                yield resource

    def _latest_progress(self, snapshot: Snapshot) -> Progress | None:
        """Return the last report of the current stage's newest child Job; that of a running pod, if there is one."""
        child = snapshot.child(StageName.TRAIN) or snapshot.child(StageName.ANNOTATE)
        pods = sorted(child.pods if child else (), key=lambda pod: pod.running)
        reports = [self._progress[pod.uid] for pod in pods if pod.uid in self._progress]
        return reports[-1] if reports else None

    def _record_progress(self, item: StagePod, progress: Progress) -> None:
        self._progress[item.pod.uid] = progress
        self.queue.add((item.namespace, item.lineage.resource_name))

    def _forget_progress(self) -> None:
        """Drop the reports of pods that are gone."""
        known = {item.pod.uid for item in self.cache.pods}
        self._progress = {uid: report for uid, report in self._progress.items() if uid in known}

    async def admit_forever(self) -> None:
        """Queue the jobs that may start because another one of their profile has ended."""
        while True:
            self.limits.admit_all()
            await asyncio.sleep(ADMISSION_SECONDS)

    async def resync(self) -> None:
        """List everything and queue each job that may need work."""
        await self.cache.replace(self.cluster.api)
        self._forget_progress()
        self.limits.forget_deleted()
        metrics.LAST_RESYNC.set_to_current_time()
        for resource in chain(self.cache.pending(), self._unannounced()):
            self.queue.add((resource.namespace, resource.name))

    async def take_over(self) -> None:
        """Resync before the first decision, and mark all pending jobs as unverified.

        The process that led before may have carried out its last decisions only in part.
        """
        await self.resync_with_retries()
        self._staleness.mark_unverified(
            (resource.namespace, resource.name) for resource in self.cache.pending()
        )

    async def resync_with_retries(self) -> None:
        """Resync, and repeat it until it succeeds."""
        while True:
            try:
                return await self.resync()
            except (ApiException, aiohttp.ClientError, OSError, ValueError) as error:
                log.warning("listing failed, retrying in %.0f s: %s", RELIST_DELAY, describe_error(error))
                await asyncio.sleep(RELIST_DELAY)

    async def resync_forever(self) -> None:
        """Resync every `RESYNC_SECONDS`, and soon after a watch started again."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.relisted.wait(), RESYNC_SECONDS)
                await asyncio.sleep(RELIST_DELAY)
            self.relisted.clear()
            await self.resync_with_retries()
