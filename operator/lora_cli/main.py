"""The command `lora`, also `kubectl lora`.

Modules that define commands import nothing heavy: each command imports what it needs when it runs, so that
`lora --help` and `lora validate` start without torch and without the Kubernetes client.
"""

from __future__ import annotations

import io
import locale
import os
import sys
from typing import Annotated

import typer

from .captions import app as captions
from .check import check
from .cluster.commands import list_, logs, resume, submit, suspend
from .cluster.describe import delete, describe
from .cluster.download import get
from .cluster.watch import watch
from .estimate import estimate
from .group import Group, verbosity
from .images import app as images
from .local.command import run
from .local.demo import demo
from .local.results import open_, push, runs
from .local.train import init, train
from .validate import validate

ANYWHERE, LOCAL, CLUSTER = "Before a job runs", "On this machine", "In a cluster"
app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(rich_help_panel=ANYWHERE)(verbosity(init))
app.command(rich_help_panel=ANYWHERE)(verbosity(validate))
app.command(rich_help_panel=ANYWHERE)(verbosity(check))
app.command(rich_help_panel=ANYWHERE)(verbosity(estimate))
app.command(rich_help_panel=LOCAL)(verbosity(train))
app.command(rich_help_panel=LOCAL)(verbosity(run))
app.command(rich_help_panel=LOCAL)(verbosity(runs))
app.command("open", rich_help_panel=LOCAL)(verbosity(open_))
app.command(rich_help_panel=LOCAL)(verbosity(push))
app.command(rich_help_panel=LOCAL)(verbosity(demo))
app.command(rich_help_panel=CLUSTER)(verbosity(submit))
app.command("list", rich_help_panel=CLUSTER)(verbosity(list_))
app.command(rich_help_panel=CLUSTER)(verbosity(describe))
app.command(rich_help_panel=CLUSTER)(verbosity(watch))
app.command(rich_help_panel=CLUSTER)(verbosity(logs))
app.command(rich_help_panel=CLUSTER)(verbosity(get))
app.command(rich_help_panel=CLUSTER)(verbosity(suspend))
app.command(rich_help_panel=CLUSTER)(verbosity(resume))
app.command(rich_help_panel=CLUSTER)(verbosity(delete))
app.add_typer(captions, name="captions", rich_help_panel=CLUSTER)
app.add_typer(images, name="images", rich_help_panel=ANYWHERE)


def _print_version(value: bool) -> None:
    if value:
        from lora_api import __version__

        typer.echo(f"lora {__version__}")
        raise typer.Exit


@app.callback()
def about(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Train a Stable Diffusion XL LoRA adapter from a handful of photographs."""


def main() -> None:
    if not sys.flags.utf8_mode and locale.getencoding().lower() != "utf-8":
        # Files of jobs are UTF-8 in every locale, also those of the stages' processes.
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - the same command again
    for stream in (sys.stdout, sys.stderr):
        # File names that are not UTF-8, and characters that PYTHONIOENCODING does not have, are printed as escapes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
