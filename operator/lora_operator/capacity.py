"""Choice of the jobs that may start when a profile limits its running jobs (`maxRunningJobs`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lora_api.profile import Profile
from lora_api.status import Phase

IDLE_PHASES = (Phase.SUSPENDED, Phase.AWAITING_APPROVAL, Phase.TERMINATING)
"""Phases in which a job without a child Job does not wait to start one."""


@dataclass(frozen=True)
class Candidate:
    """A job of a profile with a limit."""

    uid: str
    namespace: str
    created_at: str
    """RFC 3339 in UTC, as the API server writes it, so sorting the texts sorts the times."""
    running: bool
    """Whether it has a child Job that its status names and that has not ended, or pods that still terminate."""
    reserved: bool = False
    """Whether it was admitted before: its child Job may be on its way to the API server."""
    postponed: bool = False
    """Whether it was admitted before, could not start, and is not due to be tried again."""


def admit(limit: int, candidates: Iterable[Candidate]) -> frozenset[str]:
    """Return the UIDs of the jobs that may have pods: all that run, and the next ones up to the limit.

    A job that was admitted before is admitted again before any other. Otherwise a job that is seen later, but was
    created in the same second, could take the place of one that is just starting, and both would run.

    The namespace with the fewest running jobs is next, so that a namespace with hundreds of jobs does not keep the
    others waiting. Within a namespace the oldest job is next. Postponed jobs get the places that no other job can use.
    """
    by_age = sorted(candidates, key=lambda c: (c.created_at, c.uid))
    running = [candidate for candidate in by_age if candidate.running]
    reserved = [c for c in by_age if c.reserved and not c.running and not c.postponed]
    admitted, count = set[str](), Counter[str]()
    for candidate in [*running, *reserved[: max(0, limit - len(running))]]:
        admitted.add(candidate.uid)
        count[candidate.namespace] += 1
    for postponed in (False, True):
        waiting: dict[str, list[Candidate]] = {}
        for candidate in reversed(by_age):
            if candidate.uid not in admitted and candidate.postponed == postponed:
                waiting.setdefault(candidate.namespace, []).append(candidate)
        while waiting and len(admitted) < limit:
            # the last one of each list is the oldest
            namespace = min(waiting, key=lambda name: (count[name], waiting[name][-1].created_at, name))
            admitted.add(waiting[namespace].pop().uid)
            count[namespace] += 1
            if not waiting[namespace]:
                del waiting[namespace]
    return frozenset(admitted)


def describe_limit(name: str, profiles: Mapping[str, Profile]) -> str:
    """Write the message for a job that has to wait."""
    limit = profiles[name].max_running_jobs
    return f"profile {name!r} allows {limit} running jobs; this one starts when another ends"
