"""The command `lora`, also `kubectl lora`. Packages add commands by the entry point group `lora.commands`."""

from __future__ import annotations

from importlib.metadata import entry_points

import typer

from .cluster.commands import list_, logs, resume, submit, suspend, validate
from .cluster.download import get
from .cluster.watch import watch
from .local.command import run
from .local.demo import demo

HERE, CLUSTER = "On this machine", "In a cluster"
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.command(rich_help_panel=HERE)(run)
app.command(rich_help_panel=HERE)(demo)
app.command(rich_help_panel=CLUSTER)(validate)
app.command(rich_help_panel=CLUSTER)(submit)
app.command("list", rich_help_panel=CLUSTER)(list_)
app.command(rich_help_panel=CLUSTER)(watch)
app.command(rich_help_panel=CLUSTER)(logs)
app.command(rich_help_panel=CLUSTER)(get)
app.command(rich_help_panel=CLUSTER)(suspend)
app.command(rich_help_panel=CLUSTER)(resume)


@app.callback()
def about() -> None:
    """A handful of photographs in, a Stable Diffusion XL LoRA adapter out."""


def main() -> None:
    for point in entry_points(group="lora.commands"):
        try:
            found = point.load()
        except ImportError:  # that role is not installed here
            continue
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=point.name)
        else:
            app.command(point.name)(found)
    app()
