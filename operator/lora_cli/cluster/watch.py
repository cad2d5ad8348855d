"""`lora watch`: a live table of jobs, or a line for each change where stdout is not a terminal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from lora_api.status import ConditionType, Phase

from ..console import Format, clean, out, write_line
from ..errors import ClusterError, UsageError, report_errors
from ..exits import Exit
from ..options import Context, Everywhere, Namespace, Output, complete_name
from ..references import JobReference, require_namespace
from .table import Object, job_table, now, sort_by_phase, status_of

if TYPE_CHECKING:
    from .client import LoraTrainingJobClient

FRAME_SECONDS = 0.25
RETRY_SECONDS = 1.0
OTHER_LINES = 3
"""Lines of the screen that show no job: the header, the rule below it and the count."""
Known = dict[tuple[str, str], Object]
"""Jobs by namespace and name."""


def watch(
    jobs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[NAMESPACE/]NAME]...",
            help="Jobs to watch; the command exits when all have ended. Default: all jobs, until Ctrl-C.",
            autocompletion=complete_name,
        ),
    ] = None,
    *,
    namespace: Namespace = "",
    everywhere: Everywhere = False,
    context: Context = "",
    output: Output = None,
) -> None:
    """Show jobs and their progress live. Exits with 1 when a named job fails."""
    with report_errors():
        from .client import on_cluster

        selected, where = _select(jobs or [], namespace)
        view = View(selected, everywhere, output)
        try:
            known = on_cluster(lambda client: _watch(client, view), context, where)
        except KeyboardInterrupt:
            raise typer.Exit(Exit.OK) from None
        if selected and any(status_of(job).phase == Phase.FAILED for job in known.values()):
            raise typer.Exit(Exit.FAILED)


@dataclass(frozen=True)
class View:
    """Selection of the jobs to show, and the format of the output."""

    names: frozenset[str]
    """Names of the jobs to show; empty for all jobs."""
    everywhere: bool
    """Whether the jobs of all namespaces are shown."""
    output: Format | None
    """Format for programs; None for text."""

    def includes(self, job: Object) -> bool:
        return not self.names or job["metadata"]["name"] in self.names

    def ended(self, known: Known) -> bool:
        """Whether all named jobs have ended. Without names, the command runs until Ctrl-C."""
        return bool(self.names) and all(status_of(job).phase.terminal for job in known.values())


def _select(texts: Sequence[str], namespace: str) -> tuple[frozenset[str], str]:
    """Parse references of jobs.

    Returns:
        The names of the jobs, and their namespace.

    Raises:
        UsageError: when the jobs are in several namespaces.
    """
    references = [JobReference.parse(text, namespace) for text in texts]
    namespaces = {reference.namespace for reference in references} or {require_namespace(namespace)}
    if len(namespaces) > 1:
        raise UsageError("watch jobs of one namespace at a time, or all with -A")
    return frozenset(reference.name for reference in references), namespaces.pop()


async def _watch(client: LoraTrainingJobClient, view: View) -> Known:
    """Follow jobs until all named ones have ended, and return their last state."""
    known: Known = {}
    changed = asyncio.Event()
    follower = asyncio.create_task(_follow(client, known, changed, view))
    console = out()
    live = console.is_terminal and view.output is None
    try:
        if live:
            await _screen(console, known, changed, follower, view)
        else:
            await _lines(known, changed, follower, view)
    finally:
        follower.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await follower
        if live:  # print the last state on the ordinary screen, which replaces the alternate one
            console.print(job_table(sort_by_phase(known.values()), view.everywhere, now()))
    return known


async def _follow(client: LoraTrainingJobClient, known: Known, changed: asyncio.Event, view: View) -> None:
    """Keep `known` up to date with the API server, and set `changed` after each change. Reconnect when necessary."""
    from aiohttp import ClientError

    from .client import WatchExpiredError

    listed = False
    while True:
        try:
            jobs, version = await client.list_all(view.everywhere)
            known.clear()
            known.update({_key(job): job for job in jobs if view.includes(job)})
            _require_all(known, view, client.namespace)
            listed = True
            changed.set()
            # A watch that ended without an error is continued from the last version.
            while True:
                async for kind, job in client.changes(version, view.everywhere):
                    version = int(job["metadata"]["resourceVersion"])
                    if view.includes(job):
                        known.pop(_key(job), None)
                        known.update({} if kind == "DELETED" else {_key(job): job})
                        changed.set()
        except WatchExpiredError:
            continue
        except (ClientError, TimeoutError, ConnectionError):
            # If the first attempt fails, the error is reported. A connection that breaks later is opened again.
            if not listed:
                raise
            await asyncio.sleep(RETRY_SECONDS)


def _require_all(known: Known, view: View, namespace: str) -> None:
    absent = view.names - {name for _, name in known}
    if absent:
        raise ClusterError(
            f"namespace {namespace!r} has no job {', '.join(sorted(absent))}; `lora list` shows its jobs"
        )


async def _screen(
    console: Console, known: Known, changed: asyncio.Event, follower: asyncio.Task[None], view: View
) -> None:
    """Draw on the alternate screen of a terminal. It is overwritten without being cleared, so it does not flicker."""
    await _wait_for_either(changed.wait(), follower)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while not follower.done():
            changed.clear()
            live.update(JobsFrame(console, known, view.everywhere), refresh=True)
            if view.ended(known):
                return
            with contextlib.suppress(TimeoutError):  # redraw every second: ages change without an event
                await asyncio.wait_for(_wait_for_either(changed.wait(), follower), 1.0)
            await asyncio.sleep(FRAME_SECONDS)  # draw at most once in this time, however many jobs change
    follower.result()  # raises the error that ended following


async def _lines(known: Known, changed: asyncio.Event, follower: asyncio.Task[None], view: View) -> None:
    """Write one line, or one object, for each change, for output to a file, a pipe or a program."""
    written: dict[tuple[str, str], str] = {}
    while not follower.done():
        await _wait_for_either(changed.wait(), follower)
        changed.clear()
        for key, job in known.items():
            line = _line(job)
            if written.get(key) != line:
                written[key] = line
                if view.output:
                    write_line(job, view.output)
                else:
                    typer.echo(clean(line))
        if view.ended(known):
            return
    follower.result()  # raises the error that ended following


async def _wait_for_either(waiting: Awaitable[object], follower: asyncio.Task[None]) -> None:
    """Wait until `waiting` is done or `follower` has ended."""
    waiter = asyncio.ensure_future(waiting)
    try:
        await asyncio.wait({waiter, follower}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()


class JobsFrame:
    """Renderable with as many jobs as fit on the screen, those in progress first, and the number of all jobs."""

    def __init__(self, console: Console, known: Known, everywhere: bool) -> None:
        self._console = console
        self._known = known
        self._everywhere = everywhere

    def __rich__(self) -> Group:
        jobs = sort_by_phase(self._known.values())
        room = self._console.height - OTHER_LINES
        counts: dict[str, int] = {}
        for job in jobs:
            phase = status_of(job).phase
            counts[phase] = counts.get(phase, 0) + 1
        words = ", ".join(f"{count} {phase}" for phase, count in counts.items())
        hidden = f" ({len(jobs) - room} not shown)" if len(jobs) > room else ""
        footer = Text(f"{len(jobs)} jobs{hidden}: {words}" if jobs else "no jobs yet", "dim", end="")
        return Group(job_table(jobs[:room], self._everywhere, now()), footer)


def _line(job: Object) -> str:
    metadata, status = job["metadata"], status_of(job)
    condition = status.condition(ConditionType.SUCCEEDED)
    message = f"{condition.reason}: {condition.message}" if condition and status.phase.terminal else ""
    steps = status.progress.display if status.progress else ""
    name = f"{metadata['namespace']}/{metadata['name']}"
    return "  ".join(filter(None, (name, status.phase, steps, message)))


def _key(job: Object) -> tuple[str, str]:
    return job["metadata"]["namespace"], job["metadata"]["name"]
