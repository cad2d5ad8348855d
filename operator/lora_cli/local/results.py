"""`lora runs|open|push`: list local runs, open their reports and upload their adapters."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ..console import out, say, write
from ..errors import UsageError, report_errors
from ..options import Home, Output

Name = Annotated[str, typer.Argument(metavar="[NAMESPACE/]NAME", help="Name of a local job.")]


def runs(*, home: Home = Path(".lora"), output: Output = None) -> None:
    """List the jobs that were run on this machine."""
    with report_errors():
        from ..cluster.table import status_of
        from .runs import list_runs

        local_runs = list(list_runs(home))
        if output:
            items = [run.resource for run in local_runs]
            write({"apiVersion": "v1", "kind": "List", "items": items}, output)
            return
        if not local_runs:
            say(f"{home} has no jobs; `lora train DIR --token CUS --class backpack` runs one")
            return
        from rich import box
        from rich.table import Column, Table
        from rich.text import Text

        from ..console import clean
        from .messages import INTERRUPTED, local_message

        # Folded, because a name or a path that is cut off cannot be copied.
        columns = [Column(name, overflow="fold") for name in ("NAME", "PHASE", "RESULT", "MESSAGE")]
        table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for run in local_runs:
            metadata, status = run.resource["metadata"], status_of(run.resource)
            name = f"{metadata['namespace']}/{metadata['name']}"
            result = str(run.result) if run.result.is_dir() else ""
            phase, message = str(status.phase), local_message(status)
            if run.interrupted:
                phase, message = "Interrupted", INTERRUPTED
            table.add_row(*(Text(clean(t)) for t in (name, phase, result, message)))
        out().print(table)


def open_(
    name: Name,
    *,
    home: Home = Path(".lora"),
    print_: Annotated[bool, typer.Option("--print", help="Print the report's path only.")] = False,
) -> None:
    """Open the report of a local job in the browser."""
    with report_errors():
        from .runs import find_run

        run = find_run(home, name)
        if not run.report.is_file():
            raise UsageError(
                f"{name} has no report yet: its phase is {run.resource.get('status', {}).get('phase')}"
            )
        if print_ or not webbrowser.open(run.report.resolve().as_uri()):
            typer.echo(run.report.resolve())


def push(
    name: Name,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The model repository on the hub.")],
    *,
    home: Home = Path(".lora"),
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public. Default: private.")
    ] = False,
    output: Output = None,
) -> None:
    """Upload the adapter of a local job to the Hugging Face hub.

    The token is read from HF_TOKEN or from the login of the `hf` command.
    """
    with report_errors():
        from .hub import push_folder
        from .runs import find_run

        run = find_run(home, name)
        if not (run.result / "manifest.json").is_file() and not list(run.result.glob("*.safetensors")):
            raise UsageError(f"{name} has no adapter to push")
        url = push_folder(run, repository, private=not public)
        if output:
            write({"url": url}, output)
        else:
            say(url)
