"""Table of jobs, as `lora list` and `lora watch` print it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from rich import box
from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from lora_api.status import ConditionType, JobStatus, Phase

from ..console import clean

Object = Mapping[str, Any]

STYLES = {
    Phase.SUCCEEDED: "green",
    Phase.FAILED: "bold red",
    Phase.TRAINING: "cyan",
    Phase.ANNOTATING: "cyan",
    Phase.AWAITING_APPROVAL: "bold yellow",
    Phase.SUSPENDED: "yellow",
}
ORDER = [
    Phase.TRAINING,
    Phase.ANNOTATING,
    Phase.AWAITING_APPROVAL,
    Phase.QUEUED,
    Phase.PENDING,
    Phase.SUSPENDED,
    Phase.TERMINATING,
    Phase.FAILED,
    Phase.SUCCEEDED,
]
"""Jobs in progress first, then those that wait, then those that have ended."""
IN_PROGRESS = (Phase.TRAINING, Phase.ANNOTATING)
BAR_WIDTH = 16
"""Width of a progress bar, in columns."""


def status_of(job: Object) -> JobStatus:
    """Parse a job's status.

    A status of an unknown form is replaced by one with the reason StatusUnreadable, so that a list still shows the other
    jobs.
    """
    raw = job.get("status") or {}
    try:
        return JobStatus.model_validate(raw)
    except ValidationError:
        condition = {
            "type": ConditionType.SUCCEEDED,
            "status": "Unknown",
            "reason": "StatusUnreadable",
            "message": "this version of lora cannot read the status; see kubectl get -o yaml",
            "lastTransitionTime": datetime.now(UTC),
        }
        phase = raw.get("phase") if isinstance(raw, Mapping) else ""
        known = phase if phase in list(Phase) else Phase.PENDING
        return JobStatus.model_validate({"phase": known, "conditions": [condition]})


def sort_by_phase(jobs: Iterable[Object]) -> list[Object]:
    """Sort jobs by the phases in `ORDER`, and within a phase by name, so that rows keep their places."""

    def key(job: Object) -> tuple[int, str, str]:
        metadata = job["metadata"]
        return ORDER.index(status_of(job).phase), metadata["namespace"], metadata["name"]

    return sorted(jobs, key=key)


def job_table(jobs: Sequence[Object], everywhere: bool, now: datetime, *, fill: bool = True) -> Table:
    """Build a table with a progress bar for each job.

    Args:
        fill: use the whole width of the screen. Not for a pipe, which has no width.
    """
    columns = [
        *([Column("NAMESPACE", overflow="ellipsis")] if everywhere else []),
        Column("NAME", overflow="ellipsis", min_width=8),
        Column("PHASE"),
        Column("PROGRESS", width=BAR_WIDTH),
        Column("STEP", justify="right"),
        Column("ETA", justify="right"),
        Column("LOSS", justify="right"),
        Column("AGE", justify="right"),
        Column("MESSAGE", overflow="ellipsis", ratio=1),
    ]
    table = Table(*columns, box=box.SIMPLE_HEAD, expand=fill, pad_edge=False, show_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for job in jobs:
        table.add_row(*_row(job, everywhere, now))
    return table


def _row(job: Object, everywhere: bool, now: datetime) -> Iterable[RenderableType]:
    metadata, status = job["metadata"], status_of(job)
    if everywhere:
        yield Text(clean(metadata["namespace"]))
    yield Text(clean(metadata["name"]))
    yield Text(status.phase, STYLES.get(status.phase, ""))
    progress = status.progress
    if progress and progress.total_steps and status.phase != Phase.FAILED:
        yield ProgressBar(
            progress.total_steps, progress.step, BAR_WIDTH, complete_style="cyan", finished_style="green"
        )
        yield Text(clean(progress.display))
        eta = progress.eta_seconds if status.phase in IN_PROGRESS else None
        yield "" if eta is None else format_age(eta)
        yield Text(clean(progress.loss))
    else:
        yield from ("", "", "", "")
    age = now - datetime.fromisoformat(metadata["creationTimestamp"])
    yield format_age(age.total_seconds())
    yield Text(clean(_message(status)))


def _message(status: JobStatus) -> str:
    """Return what a job waits for, or why it failed; empty while its stage runs."""
    condition = status.condition(ConditionType.SUCCEEDED)
    running = status.phase in IN_PROGRESS and condition is not None and condition.reason == status.phase
    if condition is None or not condition.message or running:
        return ""
    if status.phase == Phase.SUCCEEDED:
        return condition.message
    return f"{condition.reason}: {condition.message}"


def format_age(seconds: float) -> str:
    """Format a duration, for a narrow column, in its two largest units: 45s, 6m12s, 3h5m, 2d4h."""
    left = max(int(seconds), 0)
    words = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            words.append(f"{count}{unit}")
    return "".join(words[:2]) or "0s"


def now() -> datetime:
    return datetime.now(UTC)
