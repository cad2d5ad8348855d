"""Everything that happened to the jobs of a namespace, in the order in which it did, and what must hold of it.

The API server's own watches are recorded, not what the operator saw: the resourceVersion orders all objects.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from wire import Object, Wire

from lora_api import GROUP, PLURAL, VERSION
from lora_api.status import Phase
from lora_api.steps import Outcome, StepName, decode_result
from lora_operator import names

P = Phase
TERMINAL = {P.SUCCEEDED, P.FAILED}
ORDER = ["", P.PENDING, P.ANNOTATING, P.AWAITING_APPROVAL, P.QUEUED, P.TRAINING, P.SUCCEEDED]


def may_follow(before: str, after: str) -> bool:
    """Phases go forward, and a status that could not be written in time is left out; few things lead back."""
    if before in TERMINAL:
        return False
    if before == P.SUSPENDED or after in (P.SUSPENDED, P.FAILED) or (before, after) == (P.TRAINING, P.QUEUED):
        return True
    return ORDER.index(after) > ORDER.index(before)


@dataclass(frozen=True)
class Happening:
    version: int
    kind: str
    """resource, job or pod."""
    gone: bool
    body: Object

    @property
    def uid(self) -> str:
        return str(self.body["metadata"]["uid"])

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def owner(self) -> tuple[str, str]:
        """Of a child: whose it is, and of which step."""
        labels = self.body["metadata"]["labels"]
        return labels[names.JOB_UID], labels[names.STEP]

    @property
    def phase(self) -> str:
        return str((self.body.get("status") or {}).get("phase", ""))

    @property
    def alive(self) -> bool:
        """Of a child: it may still do something."""
        if self.gone:
            return False
        if self.kind == "pod":
            return self.phase not in ("Succeeded", "Failed")
        conditions = self.body["status"].get("conditions") or ()
        return not any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)


@dataclass
class Judge:
    """Records in the background while its `async with` block lasts."""

    wire: Wire
    namespace: str
    happenings: list[Happening] = field(default_factory=list)
    now: dict[str, dict[str, Happening]] = field(
        default_factory=lambda: {"resource": {}, "job": {}, "pod": {}}
    )
    """The newest of each object that is there, by kind and name."""

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
        async for what, body in self.wire.follow(path):
            happening = Happening(int(body["metadata"]["resourceVersion"]), kind, what == "DELETED", body)
            self.happenings.append(happening)
            if happening.gone:
                self.now[kind].pop(happening.name, None)
            else:
                self.now[kind][happening.name] = happening

    def phase(self, name: str) -> str:
        found = self.now["resource"].get(name)
        return found.phase if found else ""

    def reason(self, name: str) -> str:
        return condition(self.now["resource"][name].body, "Succeeded").get("reason", "")

    def restless(self) -> list[str]:
        """Children that have not come to rest."""
        return [h.name for kind in ("job", "pod") for h in self.now[kind].values() if h.alive]

    def pods_of(self, name: str) -> Counter[str]:
        """How many pods each step of a job has had."""
        uids = {h.uid for h in self.happenings if h.kind == "resource" and h.name == name}
        pods = {(h.uid, h.owner[1]) for h in self.happenings if h.kind == "pod" and h.owner[0] in uids}
        return Counter(step for _, step in pods)

    def record(self) -> Iterator[str]:
        """All that happened, a line each, to find out why."""
        for h in sorted(self.happenings, key=lambda h: h.version):
            metadata, status = h.body["metadata"], h.body.get("status") or {}
            owners = [owner["uid"] for owner in metadata.get("ownerReferences", ())]
            times = [metadata.get(name, "-") for name in ("creationTimestamp", "deletionTimestamp")]
            marks = ["gone" if h.gone else "", "alive" if h.kind != "resource" and h.alive else "", h.phase]
            told = [c.get("message", "") for c in status.get("conditions") or () if c["type"] == "Succeeded"]
            yield " ".join(
                map(str, [h.version, h.kind, h.name, h.uid, *owners, *times, *filter(None, marks), *told])
            )

    def violations(self) -> list[str]:
        """Every broken promise, in plain words; none when all is well."""
        history = sorted(self.happenings, key=lambda h: h.version)
        rules = (
            one_child_at_a_time,
            nothing_after_the_end,
            nothing_before_its_time,
            success_is_published,
            legal_history,
        )
        return [f"{rule.__name__}: {found}" for rule in rules for found in rule(history)]


def condition(body: Object, kind: str) -> Object:
    found = (body.get("status") or {}).get("conditions") or ()
    return next((c for c in found if c["type"] == kind), {})


def one_child_at_a_time(history: list[Happening]) -> Iterator[str]:
    """Never two live pods of one step, nor two live Jobs."""
    live: dict[tuple[str, str, str], dict[str, str]] = {}
    for h in history:
        if h.kind == "resource":
            continue
        others = live.setdefault((h.kind, *h.owner), {})
        if not h.alive:
            others.pop(h.uid, None)
        elif h.uid not in others:
            if others:
                yield f"at {h.version} {h.kind} {h.name} beside {', '.join(others.values())}"
            others[h.uid] = h.name


def nothing_after_the_end(history: list[Happening]) -> Iterator[str]:
    """No Job is created once the phase is terminal. (A Job that is just being stopped may still make its pod.)"""
    over: dict[str, str] = {}
    seen: set[str] = set()
    for h in history:
        if h.kind == "resource":
            if h.phase in TERMINAL:
                over[h.uid] = h.phase
        elif h.kind == "job" and h.uid not in seen:
            seen.add(h.uid)
            if h.owner[0] in over and not h.gone:
                yield f"at {h.version} {h.name} was created after {over[h.owner[0]]}"


def nothing_before_its_time(history: list[Happening]) -> Iterator[str]:
    """No training starts on captions that a person must approve and has not."""
    held: dict[str, bool] = {}
    for h in history:
        if h.kind == "resource":
            wish = h.body["spec"]["annotation"]
            held[h.uid] = wish.get("approval") == "Required" and not wish.get("approvedCaptions")
        elif h.owner[1] == StepName.TRAIN and held.get(h.owner[0]):
            yield f"at {h.version} {h.kind} {h.name} is there before approval"


def success_is_published(history: list[Happening]) -> Iterator[str]:
    """The adapter of a job that succeeded is one that a pod of its own had verified before."""
    published: set[tuple[str, str]] = set()
    for h in history:
        if h.kind == "pod" and h.phase == "Succeeded":
            for container in h.body["status"].get("containerStatuses") or ():
                said = decode_result(container["state"].get("terminated", {}).get("message", ""))
                if said and said.adapter and said.outcome in (Outcome.TRAINED, Outcome.REUSED):
                    published.add((h.owner[0], said.adapter.uri))
        elif h.kind == "resource" and h.phase == P.SUCCEEDED:
            uri = (h.body["status"].get("adapter") or {}).get("uri", "")
            if (h.uid, uri) not in published:
                yield f"at {h.version} {h.name} succeeded with {uri!r}, which no pod of it has published"


def legal_history(history: list[Happening]) -> Iterator[str]:
    """Phases follow each other as they may, counters do not fall, an end stays as it is and says so."""
    last: dict[str, Happening] = {}
    for h in history:
        if h.kind != "resource":
            continue
        before = last.get(h.uid)
        last[h.uid] = h
        if before is None or before.version == h.version:
            continue
        where = f"at {h.version} {h.name}"
        if h.phase != before.phase and not may_follow(before.phase, h.phase):
            yield f"{where} went from {before.phase or 'nothing'} to {h.phase}"
        old, new = before.body.get("status") or {}, h.body.get("status") or {}
        for step, counter in (("captions", "attempt"), ("training", "attempt"), ("training", "disruptions")):
            was, became = (int((s.get(step) or {}).get(counter, 0)) for s in (old, new))
            if became < was:
                yield f"{where}: {step}.{counter} fell from {was} to {became}"
        captions = [(s.get("captions") or {}).get("sha256", "") for s in (old, new)]
        if captions[0] and captions[0] != captions[1]:
            yield f"{where}: its captions changed after they were there"
        if before.phase in TERMINAL and old != new:
            yield f"{where}: its status changed after its end"
        if h.phase in TERMINAL and condition(h.body, "Finished").get("status") != "True":
            yield f"{where}: it has ended and is not Finished"
