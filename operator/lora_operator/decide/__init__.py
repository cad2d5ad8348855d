"""Decide what to do next, as a pure function of the snapshot and the time: without a clock, I/O or state.

`decide` runs a chain of policies in order, until one returns True. It may be called at any time. The same snapshot
and time give the same decision.
"""

from __future__ import annotations

from datetime import datetime

from ..snapshot import Snapshot
from .admission import validate_profile, validate_resource
from .annotate import annotate, await_approval
from .decision import (
    Action,
    Announcement,
    Decision,
    DeleteChildJob,
    DeleteResource,
    RestoreChildJob,
    SendWebhook,
    StartAnnotation,
    StartTraining,
)
from .lifetime import WEBHOOK_GRACE, enforce_deadline, finish_terminal, suspend, terminate
from .status_draft import StatusDraft
from .train import train

POLICIES = (
    terminate,
    finish_terminal,
    validate_resource,
    validate_profile,
    suspend,
    enforce_deadline,
    annotate,
    await_approval,
    train,
)
"""Each changes the draft, and returns True when the policies after it must not run."""


def decide(snapshot: Snapshot, now: datetime) -> Decision:
    """Decide what to do about one job.

    Args:
        snapshot: everything that is known about the job.
        now: the current time, with a time zone. Every deadline is measured against it.
    """
    draft = StatusDraft(snapshot, now)
    for policy in POLICIES:
        if policy(draft):
            break
    return draft.decision()


__all__ = [
    "WEBHOOK_GRACE",
    "Action",
    "Announcement",
    "Decision",
    "DeleteChildJob",
    "DeleteResource",
    "RestoreChildJob",
    "SendWebhook",
    "StartAnnotation",
    "StartTraining",
    "decide",
]
