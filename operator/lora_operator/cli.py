"""The command `lora`. Packages add commands by the entry point group `lora.commands`."""

from __future__ import annotations

from importlib.metadata import entry_points

import typer

from .local.command import run
from .local.demo import demo

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(run)
app.command()(demo)


@app.callback()
def about() -> None:
    """A handful of photographs in, a Stable Diffusion XL LoRA adapter out."""


def main() -> None:
    for point in entry_points(group="lora.commands"):
        try:
            app.add_typer(point.load(), name=point.name)
        except ImportError:  # that role is not installed here
            continue
    app()
