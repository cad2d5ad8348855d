"""What a person sees of a local run: one line a change, a bar while a step works."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lora_api.status import JobStatus, Phase

from ..decide import Decision

LINE_EVERY_PERCENT = 20
"""Where there is no terminal to draw a bar on."""


class Display:
    """Feed it decisions; it prints what is new in them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = ""
        self._percent = 0
        self._bar = Progress(
            TextColumn("  {task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, detail="", visible=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, decision: Decision) -> None:
        status = decision.status
        line = _headline(status)
        if line != self._said:
            self._said, self._percent = line, 0
            self._console.print(line, highlight=False, soft_wrap=True)
        self._show_progress(status)

    def _show_progress(self, status: JobStatus) -> None:
        progress = status.progress
        working = status.phase in (Phase.ANNOTATING, Phase.TRAINING)
        if progress is None or not working or not progress.total_steps:
            self._bar.update(self._task, visible=False)
            return
        detail = "  ".join(
            text
            for text in (
                f"loss {progress.loss}" if progress.loss else "",
                f"{progress.steps_per_second}/s" if progress.steps_per_second else "",
            )
            if text
        )
        self._bar.update(
            self._task,
            description=str(status.phase),
            completed=progress.step,
            total=progress.total_steps,
            detail=detail,
            visible=True,
        )
        if not self._console.is_terminal and progress.percent >= self._percent + LINE_EVERY_PERCENT:
            self._percent = progress.percent
            self._console.print(f"  {progress.display}  {detail}", highlight=False)


COLOURS = {Phase.SUCCEEDED: "green", Phase.FAILED: "red"}


def _headline(status: JobStatus) -> str:
    condition = next((c for c in status.conditions if c.type == "Succeeded"), None)
    reason = condition.reason if condition and condition.reason != status.phase else ""
    message = condition.message if condition else ""
    colour = COLOURS.get(status.phase, "bold")
    return " ".join(
        part for part in (f"[{colour}]{status.phase:<12}[/]", f"{reason}:" if reason else "", message) if part
    )
