"""The output of a local run: one line for each change, and a progress bar while a stage runs."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from lora_api.status import ConditionType, JobStatus, Phase
from lora_operator.decide import Decision

from ..console import clean
from .messages import dataset_warning, local_message

STYLES = {Phase.SUCCEEDED: "green", Phase.FAILED: "red"}
LINE_EVERY_PERCENT = 20
"""Growth of the progress, in percent, after which a line is printed where there is no terminal."""


class Display:
    """Prints what has changed since the previous decision."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_line = ""
        self._percent = 0
        self._warned = False
        self._previews: set[Path] = set()
        self._started = time.time()
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
        if line.plain != self._last_line:
            self._last_line, self._percent = line.plain, 0
            self._console.print(line, soft_wrap=True)
        if not self._warned and status.dataset and (warning := dataset_warning(status.dataset)):
            self._warned = True
            self._console.print(Text(f"  {clean(warning)}", "yellow"), soft_wrap=True)
        self._show_progress(status)

    def show_previews(self, folder: Path) -> None:
        """Print the path of each preview that was generated since the display was started.

        Args:
            folder: work folder of the training stage. Previews of an earlier command are not printed.
        """
        for file in sorted(folder.glob("attempt-*/preview-*.png")):
            if file not in self._previews and not file.stem.endswith("-base"):
                self._previews.add(file)
                if file.stat().st_mtime >= self._started:
                    self._console.print(Text(f"  preview  {clean(file)}"), soft_wrap=True)

    def _show_progress(self, status: JobStatus) -> None:
        progress = status.progress
        working = status.phase in (Phase.ANNOTATING, Phase.TRAINING)
        if progress is None or not working or not progress.total_steps:
            self._bar.update(self._task, visible=False)
            return
        detail = "  ".join(
            text
            for text in (
                f"loss {clean(progress.loss)}" if progress.loss else "",
                f"{clean(progress.steps_per_second)}/s" if progress.steps_per_second else "",
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
            self._console.print(f"  {clean(progress.display)}  {detail}")


def _headline(status: JobStatus) -> Text:
    condition = status.condition(ConditionType.SUCCEEDED)
    line = Text(f"{status.phase:<12}", STYLES.get(status.phase, "bold"))
    if condition and condition.reason != status.phase:
        line.append(f" {clean(condition.reason)}:", "")
    if message := local_message(status):
        line.append(f" {clean(message)}", "")
    return line
