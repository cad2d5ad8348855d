"""The limits of running jobs (`maxRunningJobs`): which jobs they admit, and which of these could not start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic

from .capacity import IDLE_PHASES, Candidate, admit, describe_limit
from .decide import Decision
from .indexer import Cache
from .observe import Resource
from .settings import ProfilesFile
from .snapshot import Key, Refusal, Snapshot

ADMISSION_SECONDS = 1.0
"""How long the set of jobs that a profile's limit admits is reused before it is computed again."""
MAX_ERRORS = 3
"""Errors in a row after which an admitted job is postponed. After a single error its child Job may exist: the next
reconcile lists it."""
ERROR_DELAY = 60.0
"""Time in seconds for which a job is postponed after errors."""


@dataclass(frozen=True)
class Postponement:
    """A job that was admitted and could not start. Its place goes to another job."""

    refusal: Refusal | None
    """Why the API server refused its child Job; None if something else prevents the start."""
    due: float
    """Time on the monotonic clock from which it is admitted like any other job."""


class RunningLimits:
    """The jobs that are admitted under each profile with a limit."""

    def __init__(self, cache: Cache, profiles: ProfilesFile, enqueue: Callable[[Key], None]) -> None:
        self._cache = cache
        self._profiles = profiles
        self._enqueue = enqueue
        self._admitted: dict[str, tuple[float, frozenset[str]]] = {}
        """Time of the last computation, on the monotonic clock, and the UIDs that it admitted, by profile."""
        self._running: dict[str, dict[str, Resource]] = {}
        """The jobs that had a place at that time, by profile and UID. A deleted one keeps it while its pods terminate."""
        self._postponed: dict[str, Postponement] = {}
        """The jobs that could not start at their last reconcile, by UID."""
        self._errors: Counter[str] = Counter()
        """Errors in a row while a job was admitted, by UID."""

    def check(self, resource: Resource) -> tuple[str, Refusal | None]:
        """Return why a job must not start now, and why it was refused when it was admitted last.

        The first is empty when its profile has no limit or the job is within it. An admitted job is tried again
        without its last refusal.
        """
        limit = self._limit(resource)
        if limit is None or not resource.may_start:
            return "", None
        if resource.uid in self.admit(resource.profile, limit):
            # from here on it keeps its place until `record` or `record_error`: its child Job may be created
            self._postponed.pop(resource.uid, None)
            return "", None
        postponed = self._postponed.get(resource.uid)
        message = describe_limit(resource.profile, self._profiles.current())
        return message, postponed.refusal if postponed else None

    def record(self, resource: Resource, snapshot: Snapshot, decision: Decision) -> None:
        """Postpone a job that was admitted, but which the carried out decision did not start."""
        if not _waits_to_start(snapshot, decision):
            self._forget(resource.uid)
        elif not snapshot.capacity:
            due = decision.requeue_at
            self._errors.pop(resource.uid, None)
            self._postpone(
                resource,
                snapshot.refusal,
                (due - datetime.now(UTC)).total_seconds() if due is not None else ERROR_DELAY,
            )

    def record_error(self, resource: Resource) -> None:
        """Postpone a job whose reconciles raise one error after another, for example of an admission webhook."""
        admitted = self._admitted.get(resource.profile, (0.0, frozenset[str]()))[1]
        if self._limit(resource) is None or resource.uid not in admitted:
            return
        self._errors[resource.uid] += 1
        if self._errors[resource.uid] >= MAX_ERRORS:
            self._postpone(resource, None, ERROR_DELAY)

    def admit_all(self) -> None:
        """Queue the jobs that may start because another one of their profile has ended."""
        for name, profile in self._profiles.current().items():
            if profile.max_running_jobs is not None:
                self.admit(name, profile.max_running_jobs)

    def admit(self, profile: str, limit: int, again: bool = False) -> frozenset[str]:
        """Return the UIDs of the jobs that a profile's limit admits, and queue those that it newly admits.

        Args:
            again: compute the set even if the last one is still fresh.
        """
        now = monotonic()
        cached = self._admitted.get(profile)
        # A cached set stays within the limit: an admitted job that has started since counts as running and is in it.
        if cached is None or again or now - cached[0] >= ADMISSION_SECONDS:
            before = cached[1] if cached else frozenset[str]()
            admitted = admit(limit, self._candidates(profile, before, now))
            new = admitted - before
            for resource in self._cache.resources:
                # a postponed job is reconciled when it is due
                if resource.uid in new and not self._is_postponed(resource.uid, now):
                    self._enqueue((resource.namespace, resource.name))
            self._admitted[profile] = cached = (now, admitted)
        return cached[1]

    def forget_deleted(self) -> None:
        """Drop what is known of jobs that are gone."""
        known = {resource.uid for resource in self._cache.resources}
        for uid in {*self._postponed, *self._errors} - known:
            self._forget(uid)

    def _candidates(self, profile: str, reserved: frozenset[str], now: float) -> Iterator[Candidate]:
        """List the jobs of a profile that have pods or wait to start; `reserved` are the UIDs that were admitted before."""
        resources = {
            resource.uid: resource for resource in self._cache.resources if resource.profile == profile
        }
        before, self._running[profile] = self._running.get(profile, {}), {}
        for resource in (before | resources).values():
            running = self._has_place(resource) if resource.uid in resources else self._has_pods(resource)
            if running:
                self._running[profile][resource.uid] = resource
            elif resource.uid not in resources:
                continue
            idle = resource.suspended or resource.deleting or resource.phase in IDLE_PHASES
            if running or (resource.may_start and not idle):
                yield Candidate(
                    resource.uid,
                    resource.namespace,
                    resource.created_at,
                    running,
                    reserved=resource.uid in reserved,
                    postponed=self._is_postponed(resource.uid, now),
                )

    def _has_place(self, resource: Resource) -> bool:
        """Return whether a job runs, or its pods still terminate, which takes minutes for a checkpoint.

        Pods outlive the child Job of a job that has ended, and one that a person deletes in the background.
        """
        return resource.runs(self._cache.children.by_owner(resource.owner)) or self._has_pods(resource)

    def _has_pods(self, resource: Resource) -> bool:
        return resource.has_pods(self._cache.pods.by_owner(resource.owner))

    def _is_postponed(self, uid: str, now: float) -> bool:
        return uid in self._postponed and now < self._postponed[uid].due

    def _postpone(self, resource: Resource, refusal: Refusal | None, seconds: float) -> None:
        """Postpone a job and admit others in its place."""
        limit = self._limit(resource)
        if limit is not None:
            self._postponed[resource.uid] = Postponement(refusal, monotonic() + seconds)
            self.admit(resource.profile, limit, again=True)

    def _forget(self, uid: str) -> None:
        self._postponed.pop(uid, None)
        self._errors.pop(uid, None)

    def _limit(self, resource: Resource) -> int | None:
        profile = self._profiles.current().get(resource.profile)
        return profile.max_running_jobs if profile else None


def _waits_to_start(snapshot: Snapshot, decision: Decision) -> bool:
    """Return whether a job has nothing that runs, or still terminates, and a decision starts nothing."""
    phase = decision.status.phase
    return not (
        decision.actions
        or phase.terminal
        or phase in IDLE_PHASES
        or snapshot.orphaned_pods
        or any(not child.ended for child in snapshot.children)
    )
