"""Record the history of the jobs of a namespace, and check the rules that it must follow.

The history comes from watches of its own, because the operator may miss events. The resourceVersion orders the
events of all kinds of objects.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from lora_api import GROUP, PLURAL, VERSION
from lora_api.stages import Outcome, StageName, decode_result
from lora_api.status import Phase
from lora_operator import names
from tests.support.cluster.wire import Object, Wire

P = Phase
TERMINAL = {P.SUCCEEDED, P.FAILED}
ORDER = ["", P.PENDING, P.ANNOTATING, P.AWAITING_APPROVAL, P.QUEUED, P.TRAINING, P.SUCCEEDED]


def may_follow(before: str, after: str) -> bool:
    """Whether a job may go from one phase to another.

    Phases go forward. Some may be skipped, because a status that could not be written in time is never seen.
    """
    if before == P.TERMINATING or before == P.SUCCEEDED:
        return False
    if after == P.TERMINATING:
        return before not in TERMINAL
    if before == P.FAILED:
        # a retry; `valid_status_changes` checks by the counter that one was requested
        return after in (P.PENDING, P.ANNOTATING, P.QUEUED, P.TRAINING, P.SUCCEEDED)
    if before == P.SUSPENDED or after in (P.SUSPENDED, P.FAILED) or (before, after) == (P.TRAINING, P.QUEUED):
        return True
    return ORDER.index(after) > ORDER.index(before)


@dataclass(frozen=True)
class WatchEvent:
    """A version of an object, or its deletion, as a watch reported it."""

    version: int
    """The object's resourceVersion."""
    kind: str
    """`resource` for the LoraTrainingJob, `job` for a child Job, or `pod`."""
    deleted: bool
    body: Object

    @property
    def uid(self) -> str:
        return str(self.body["metadata"]["uid"])

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def owner(self) -> tuple[str, str]:
        """The UID of a child's job, and the child's stage."""
        labels = self.body["metadata"]["labels"]
        return labels[names.JOB_UID], labels[names.STAGE]

    @property
    def phase(self) -> str:
        return str((self.body.get("status") or {}).get("phase", ""))

    @property
    def active(self) -> bool:
        """Whether a child is still active: it exists and has not ended."""
        if self.deleted:
            return False
        if self.kind == "pod":
            return self.phase not in ("Succeeded", "Failed")
        conditions = self.body["status"].get("conditions") or ()
        return not any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)


@dataclass
class Recorder:
    """Records the events of a namespace in the background while its `async with` block lasts."""

    wire: Wire
    namespace: str
    events: list[WatchEvent] = field(default_factory=list)
    current: dict[str, dict[str, WatchEvent]] = field(
        default_factory=lambda: {"resource": {}, "job": {}, "pod": {}}
    )
    """The newest version of each object that exists, by kind and name."""

    async def __aenter__(self) -> Self:
        paths = {
            "resource": f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}",
            "job": f"/apis/batch/v1/namespaces/{self.namespace}/jobs",
            "pod": f"/api/v1/namespaces/{self.namespace}/pods",
        }
        self._tasks = [asyncio.create_task(self._record(kind, path)) for kind, path in paths.items()]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _record(self, kind: str, path: str) -> None:
        async for change, body in self.wire.follow(path):
            event = WatchEvent(int(body["metadata"]["resourceVersion"]), kind, change == "DELETED", body)
            self.events.append(event)
            if event.deleted:
                self.current[kind].pop(event.name, None)
            else:
                self.current[kind][event.name] = event

    def phase(self, name: str) -> str:
        found = self.current["resource"].get(name)
        return found.phase if found else ""

    def reason(self, name: str) -> str:
        return condition(self.current["resource"][name].body, "Succeeded").get("reason", "")

    def active_children(self) -> list[str]:
        """Return the names of the child Jobs and pods that have not ended."""
        return [
            event.name for kind in ("job", "pod") for event in self.current[kind].values() if event.active
        ]

    def pods_of(self, name: str) -> Counter[str]:
        """Count the pods that each stage of a job has had."""
        uids = {event.uid for event in self.events if event.kind == "resource" and event.name == name}
        pods = {
            (event.uid, event.owner[1])
            for event in self.events
            if event.kind == "pod" and event.owner[0] in uids
        }
        return Counter(stage for _, stage in pods)

    def format_events(self) -> Iterator[str]:
        """Yield a line for each event, to find the cause of an error."""
        for event in sorted(self.events, key=lambda event: event.version):
            metadata, status = event.body["metadata"], event.body.get("status") or {}
            owners = [owner["uid"] for owner in metadata.get("ownerReferences", ())]
            times = [metadata.get(name, "-") for name in ("creationTimestamp", "deletionTimestamp")]
            states = [
                "deleted" if event.deleted else "",
                "active" if event.kind != "resource" and event.active else "",
                event.phase,
            ]
            messages = [
                c.get("message", "") for c in status.get("conditions") or () if c["type"] == "Succeeded"
            ]
            yield " ".join(
                map(
                    str,
                    [
                        event.version,
                        event.kind,
                        event.name,
                        event.uid,
                        *owners,
                        *times,
                        *filter(None, states),
                        *messages,
                    ],
                )
            )

    def violations(self) -> list[str]:
        """Describe every violation of a rule."""
        history = sorted(self.events, key=lambda event: event.version)
        rules = (
            one_child_at_a_time,
            no_job_after_the_end,
            no_training_before_approval,
            adapter_is_published,
            valid_status_changes,
        )
        return [f"{rule.__name__}: {found}" for rule in rules for found in rule(history)]


def condition(body: Object, kind: str) -> Object:
    found = (body.get("status") or {}).get("conditions") or ()
    return next((c for c in found if c["type"] == kind), {})


def one_child_at_a_time(history: list[WatchEvent]) -> Iterator[str]:
    """Describe stages that have two active pods or two active child Jobs at the same time."""
    live: dict[tuple[str, str, str], dict[str, str]] = {}
    for event in history:
        if event.kind == "resource":
            continue
        others = live.setdefault((event.kind, *event.owner), {})
        if not event.active:
            others.pop(event.uid, None)
        elif event.uid not in others:
            if others:
                yield f"at {event.version} {event.kind} {event.name} beside {', '.join(others.values())}"
            others[event.uid] = event.name


def no_job_after_the_end(history: list[WatchEvent]) -> Iterator[str]:
    """Describe child Jobs that are created after the phase is terminal. One that is being deleted may still create its pod."""
    ended: dict[str, str] = {}
    seen: set[str] = set()
    for event in history:
        if event.kind == "resource":
            retry = (event.body["spec"].get("runPolicy") or {}).get("retry", 0)
            if event.phase in TERMINAL and retry <= (event.body["status"].get("retries") or 0):
                ended[event.uid] = event.phase
            else:
                ended.pop(event.uid, None)
        elif event.kind == "job" and event.uid not in seen:
            seen.add(event.uid)
            if event.owner[0] in ended and not event.deleted:
                yield f"at {event.version} {event.name} was created after {ended[event.owner[0]]}"


def no_training_before_approval(history: list[WatchEvent]) -> Iterator[str]:
    """Describe trainings that start before their captions are approved, if they must be."""
    waiting: dict[str, bool] = {}
    for event in history:
        if event.kind == "resource":
            annotation = event.body["spec"]["annotation"]
            waiting[event.uid] = annotation.get("approval") == "Required" and not annotation.get(
                "approvedCaptions"
            )
        elif event.owner[1] == StageName.TRAIN and waiting.get(event.owner[0]):
            yield f"at {event.version} {event.kind} {event.name} exists before approval"


def adapter_is_published(history: list[WatchEvent]) -> Iterator[str]:
    """Describe succeeded jobs whose adapter was not published by one of their pods before."""
    published: set[tuple[str, str]] = set()
    for event in history:
        if event.kind == "pod":
            for container in event.body["status"].get("containerStatuses") or ():
                result = decode_result(container["state"].get("terminated", {}).get("message", ""))
                if result and result.adapter and result.outcome in (Outcome.TRAINED, Outcome.REUSED):
                    published.add((event.owner[0], result.adapter.uri))
        elif event.kind == "resource" and event.phase == P.SUCCEEDED:
            uri = (event.body["status"].get("adapter") or {}).get("uri", "")
            if (event.uid, uri) not in published:
                yield f"at {event.version} {event.name} succeeded with {uri!r}, which none of its pods has published"


def valid_status_changes(history: list[WatchEvent]) -> Iterator[str]:
    """Describe phases in a wrong order, counters that decrease, and changes of a terminal status."""
    last: dict[str, WatchEvent] = {}
    for event in history:
        if event.kind != "resource":
            continue
        before = last.get(event.uid)
        last[event.uid] = event
        if before is None or before.version == event.version:
            continue
        where = f"at {event.version} {event.name}"
        if event.phase != before.phase and not may_follow(before.phase, event.phase):
            yield f"{where} went from {before.phase or 'nothing'} to {event.phase}"
        old, new = before.body.get("status") or {}, event.body.get("status") or {}
        for stage, counter in (("captions", "attempt"), ("training", "attempt"), ("training", "disruptions")):
            was, became = (int((s.get(stage) or {}).get(counter, 0)) for s in (old, new))
            if became < was:
                yield f"{where}: {stage}.{counter} decreased from {was} to {became}"
        captions = [(s.get("captions") or {}).get("sha256", "") for s in (old, new)]
        if captions[0] and captions[0] != captions[1]:
            yield f"{where}: its captions changed after they were written"
        retried = int(new.get("retries", 0)) > int(old.get("retries", 0))
        if before.phase in TERMINAL and old != new and not retried:
            yield f"{where}: its status changed after its end"
        if event.phase in TERMINAL and condition(event.body, "Finished").get("status") != "True":
            yield f"{where}: it has ended but its condition Finished is not True"
