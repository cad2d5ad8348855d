"""Jobs as rows for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich import box
from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from lora_api.status import ConditionType, JobStatus, Phase

from ..api import Object

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
    Phase.FAILED,
    Phase.SUCCEEDED,
]
"""What moves comes first, then what waits, then what has ended."""
AT_WORK = (Phase.TRAINING, Phase.ANNOTATING)
BAR = 16


def status_of(job: Object) -> JobStatus:
    return JobStatus.model_validate(job.get("status") or {})


def by_phase(jobs: Iterable[Object]) -> list[Object]:
    """Those at work first; within a phase by name, so that rows keep their places."""

    def key(job: Object) -> tuple[int, str, str]:
        metadata = job["metadata"]
        return ORDER.index(status_of(job).phase), metadata["namespace"], metadata["name"]

    return sorted(jobs, key=key)


def show(jobs: Sequence[Object], everywhere: bool, now: datetime) -> Table:
    """A table with a progress bar a job."""
    columns = [
        *([Column("NAMESPACE", overflow="ellipsis")] if everywhere else []),
        Column("NAME", overflow="ellipsis", min_width=8),
        Column("PHASE"),
        Column("PROGRESS", width=BAR),
        Column("STEP", justify="right"),
        Column("ETA", justify="right"),
        Column("LOSS", justify="right"),
        Column("AGE", justify="right"),
        Column("MESSAGE", overflow="ellipsis", ratio=1),
    ]
    table = Table(*columns, box=box.SIMPLE_HEAD, expand=True, pad_edge=False, show_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for job in jobs:
        table.add_row(*_row(job, everywhere, now))
    return table


def _row(job: Object, everywhere: bool, now: datetime) -> Iterable[RenderableType]:
    metadata, status = job["metadata"], status_of(job)
    if everywhere:
        yield Text(metadata["namespace"])
    yield Text(metadata["name"])
    yield Text(status.phase, STYLES.get(status.phase, ""))
    progress = status.progress
    if progress and progress.total_steps and status.phase != Phase.FAILED:
        yield ProgressBar(
            progress.total_steps, progress.step, BAR, complete_style="cyan", finished_style="green"
        )
        yield progress.display
        eta = progress.eta_seconds if status.phase in AT_WORK else None
        yield "" if eta is None else duration(eta)
        yield progress.loss
    else:
        yield from ("", "", "", "")
    age = now - datetime.fromisoformat(metadata["creationTimestamp"])
    yield duration(age.total_seconds())
    yield Text(_message(status))


def _message(status: JobStatus) -> str:
    """What a person wants to know of a job beyond its phase: what it waits for, or why it failed."""
    told = status.condition(ConditionType.SUCCEEDED)
    if told is None or not told.message or status.phase in AT_WORK:
        return ""
    return told.message if status.phase == Phase.SUCCEEDED else f"{told.reason}: {told.message}"


def duration(seconds: float) -> str:
    """In the two largest units: 45s, 6m12s, 3h5m, 2d4h."""
    left = max(int(seconds), 0)
    words = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            words.append(f"{count}{unit}")
    return "".join(words[:2]) or "0s"


def now() -> datetime:
    return datetime.now(UTC)
