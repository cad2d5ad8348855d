"""What to do next, as a pure function of what is known: no clock, no I/O, nothing remembered.

`decide` asks a chain of small policies in order; the first that settles the matter ends it. It may be
asked again at any time, with the same or a newer snapshot, and says the same thing again.
"""

from __future__ import annotations

from datetime import datetime

from ..snapshot import Snapshot
from .admission import accept, understand
from .annotate import annotate, await_approval
from .decision import (
    Action,
    Announcement,
    Decision,
    RemoveJob,
    StartAnnotation,
    StartTraining,
    StopStep,
)
from .lifetime import enforce_deadline, latch, suspend
from .story import Story
from .train import train

POLICIES = (latch, understand, accept, enforce_deadline, suspend, annotate, await_approval, train)


def decide(snapshot: Snapshot, now: datetime) -> Decision:
    """Decide about one job.

    Args:
        snapshot: all that is known of it.
        now: an aware time; every deadline is measured against it.
    """
    story = Story(snapshot, now)
    for settles in POLICIES:
        if settles(story):
            break
    return story.decision()


__all__ = [
    "Action",
    "Announcement",
    "Decision",
    "RemoveJob",
    "StartAnnotation",
    "StartTraining",
    "StopStep",
    "decide",
]
