"""`lora watch`: jobs as they go on, in a table that is drawn again only where something changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Collection
from typing import Annotated

import typer
from aiohttp import ClientError
from rich.console import Group
from rich.live import Live
from rich.text import Text

from lora_api.status import ConditionType, Phase

from ..api import Object
from .connection import ClusterError, Jobs, WatchExpiredError
from .options import FAILED, Context, Everywhere, Namespace, complete_name, console, on_cluster, plainly
from .table import by_phase, now, show, status_of

FRAME_SECONDS = 0.25
RETRY_SECONDS = 1.0
SURROUNDINGS = 3
"""Lines of the screen that are no jobs: the header, its rule and the count."""
Known = dict[tuple[str, str], Object]
"""Jobs by namespace and name."""


def watch(
    jobs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names; the command ends when these jobs have. Left out, all, until Ctrl-C.",
            autocompletion=complete_name,
        ),
    ] = None,
    *,
    namespace: Namespace = "",
    everywhere: Everywhere = False,
    context: Context = "",
) -> None:
    """Show jobs and their progress as they go on. Ends with 1 when a named job fails."""
    wanted = frozenset(jobs or ())
    with plainly():
        try:
            known = on_cluster(lambda cluster: _watch(cluster, wanted, everywhere), context, namespace)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None
    if any(status_of(job).phase == Phase.FAILED for job in known.values()):
        raise typer.Exit(FAILED)


async def _watch(jobs: Jobs, wanted: Collection[str], everywhere: bool) -> Known:
    """Follow jobs until all wanted have ended; how they are then."""
    known: Known = {}
    changed = asyncio.Event()
    follower = asyncio.create_task(_follow(jobs, known, changed, wanted, everywhere))
    draw = _screen if console.is_terminal else _lines
    try:
        await draw(known, changed, follower, wanted, everywhere)
    finally:
        follower.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await follower
        if console.is_terminal:
            console.print(show(by_phase(known.values()), everywhere, now()))
    return known


async def _follow(
    jobs: Jobs, known: Known, changed: asyncio.Event, wanted: Collection[str], everywhere: bool
) -> None:
    """Keep `known` as the API server has it, through cut connections."""
    listed = False
    while True:
        try:
            found, version = await jobs.all(everywhere)
            known.clear()
            known.update({_key(job): job for job in found if _is_wanted(job, wanted)})
            _require(known, wanted, jobs.namespace)
            listed = True
            changed.set()
            while True:
                async for kind, job in jobs.changes(version, everywhere):
                    version = int(job["metadata"]["resourceVersion"])
                    if _is_wanted(job, wanted):
                        known.pop(_key(job), None)
                        known.update({} if kind == "DELETED" else {_key(job): job})
                        changed.set()
        except WatchExpiredError:
            continue
        except (ClientError, TimeoutError, ConnectionError):
            if not listed:  # it was never there: a person should hear it
                raise
            await asyncio.sleep(RETRY_SECONDS)


def _require(known: Known, wanted: Collection[str], namespace: str) -> None:
    absent = set(wanted) - {name for _, name in known}
    if absent:
        raise ClusterError(
            f"namespace {namespace!r} has no job {', '.join(sorted(absent))}; `lora list` shows what it has"
        )


async def _screen(
    known: Known,
    changed: asyncio.Event,
    follower: asyncio.Task[None],
    wanted: Collection[str],
    everywhere: bool,
) -> None:
    """On a terminal: a screen of its own, written over in place and never cleared."""
    await _either(changed.wait(), follower)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while not follower.done():
            changed.clear()
            live.update(Frame(known, everywhere), refresh=True)
            if _all_ended(known, wanted):
                return
            with contextlib.suppress(TimeoutError):  # ages go on where nothing else does
                await asyncio.wait_for(_either(changed.wait(), follower), 1.0)
            await asyncio.sleep(FRAME_SECONDS)
    follower.result()


async def _lines(
    known: Known,
    changed: asyncio.Event,
    follower: asyncio.Task[None],
    wanted: Collection[str],
    everywhere: bool,
) -> None:
    """Into a file or a pipe: a line for what is new."""
    said: dict[tuple[str, str], str] = {}
    while not follower.done():
        await _either(changed.wait(), follower)
        changed.clear()
        for key, job in known.items():
            line = _line(job)
            if said.get(key) != line:
                said[key] = line
                typer.echo(line)
        if _all_ended(known, wanted):
            return
    follower.result()


async def _either(waiting: Awaitable[object], follower: asyncio.Task[None]) -> None:
    """Until something changed, or following ended."""
    waiter = asyncio.ensure_future(waiting)
    try:
        await asyncio.wait({waiter, follower}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()


class Frame:
    """As many jobs as the screen has room for, those at work first, and how many there are in all."""

    def __init__(self, known: Known, everywhere: bool) -> None:
        self._known = known
        self._everywhere = everywhere

    def __rich__(self) -> Group:
        jobs = by_phase(self._known.values())
        room = console.height - SURROUNDINGS
        counts: dict[str, int] = {}
        for job in jobs:
            phase = status_of(job).phase
            counts[phase] = counts.get(phase, 0) + 1
        words = ", ".join(f"{count} {phase}" for phase, count in counts.items())
        hidden = f" ({len(jobs) - room} below the edge)" if len(jobs) > room else ""
        footer = Text(f"{len(jobs)} jobs{hidden}: {words}" if jobs else "no jobs yet", "dim", end="")
        return Group(show(jobs[:room], self._everywhere, now()), footer)


def _line(job: Object) -> str:
    metadata, status = job["metadata"], status_of(job)
    told = status.condition(ConditionType.SUCCEEDED)
    message = f"{told.reason}: {told.message}" if told and status.phase.terminal else ""
    steps = status.progress.display if status.progress else ""
    return "  ".join(
        filter(None, (f"{metadata['namespace']}/{metadata['name']}", status.phase, steps, message))
    )


def _is_wanted(job: Object, wanted: Collection[str]) -> bool:
    return not wanted or job["metadata"]["name"] in wanted


def _key(job: Object) -> tuple[str, str]:
    return job["metadata"]["namespace"], job["metadata"]["name"]


def _all_ended(known: Known, wanted: Collection[str]) -> bool:
    return bool(wanted) and all(status_of(job).phase.terminal for job in known.values())
