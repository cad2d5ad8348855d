"""Options that the commands share, how they print what programs read, and how they say what went wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import typer
import yaml
from rich.console import Console
from rich.markup import escape

from lora_api.job import InvalidResourceError

from ..api import NotServedError
from ..jobfile import UsageError
from ..settings import SettingsError
from .connection import ClusterError, Jobs, connect

USAGE, FAILED = 64, 1
COMPLETION_SECONDS = 2.0
console = Console()
complaints = Console(stderr=True)
Result = TypeVar("Result")


class Format(StrEnum):
    JSON = "json"
    YAML = "yaml"


def complete_name(given: str) -> list[str]:
    """Names of jobs, for the shell; none where the cluster does not answer soon."""

    async def ask(jobs: Jobs) -> list[str]:
        found, _ = await asyncio.wait_for(jobs.all(), COMPLETION_SECONDS)
        return [job["metadata"]["name"] for job in found]

    try:
        return [name for name in on_cluster(ask) if name.startswith(given)]
    except Exception:  # whatever it is, a person in the middle of a line has no use for it
        return []


Name = Annotated[str, typer.Argument(help="Of a LoraTrainingJob.", autocompletion=complete_name)]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Left out, the context's.")]
Context = Annotated[str, typer.Option(help="Of the kubeconfig; left out, the current one.")]
Everywhere = Annotated[bool, typer.Option("--all-namespaces", "-A", help="Jobs of every namespace.")]
Output = Annotated[Format | None, typer.Option("--output", "-o", help="For programs, the whole resource.")]
Assign = Annotated[
    list[str] | None,
    typer.Option("--set", help="FIELD=VALUE under spec, for example training.maxSteps=100."),
]


def on_cluster(
    work: Callable[[Jobs], Coroutine[Any, Any, Result]], context: str = "", namespace: str = ""
) -> Result:
    """Do something with a cluster's jobs."""

    async def connected() -> Result:
        async with connect(context, namespace) as jobs:
            return await work(jobs)

    return asyncio.run(connected())


def write(data: Any, form: Format) -> None:
    """Print what a program is to read."""
    if form == Format.JSON:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        typer.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)


@contextmanager
def plainly() -> Iterator[None]:
    """Say what went wrong in one line, and end with 64."""
    try:
        yield
    except (UsageError, InvalidResourceError, SettingsError, ClusterError, NotServedError) as error:
        complaints.print(f"[red]lora:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(USAGE) from None
