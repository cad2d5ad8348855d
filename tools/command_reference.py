"""Generation of docs/reference/commands.md from the definitions of `lora`. It is run by `make reference`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from lora_cli.main import app

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "commands.md"
INTRODUCTION = """# Commands

Every command and option of `lora`, generated from the code. [The command `lora`](../how-to/command-line.md) shows how to use them.
"""


def render() -> str:
    """Build the page: a table of all commands, then a section with arguments and options for each."""
    root = typer.main.get_command(app)
    commands = list(_commands(root, "lora"))
    table = "".join(
        f"| [`{path}`](#{path.replace(' ', '-')}) | {_cell(_first_sentence(command.help))} |\n"
        for path, command in commands
    )
    sections = "".join(_section(path, command) for path, command in commands)
    return f"{INTRODUCTION}\n| Command | |\n|---|---|\n{table}{sections}"


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the full name and the command of each leaf of the command tree."""
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name, child in children.items():
        if not child.hidden:
            yield from _commands(child, f"{path} {name}")


def _section(path: str, command: Any) -> str:
    text = re.sub(r"\s*\n\s*\n\s*", "\n\n", command.help or "").strip()
    rows = "".join(_row(command, parameter) for parameter in command.params if not _is_hidden(parameter))
    table = f"\n| Argument or option | Default | |\n|---|---|---|\n{rows}" if rows else ""
    return f"\n## `{path}`\n\n{text}\n{table}"


def _row(command: Any, parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        names = f"`{(parameter.metavar or parameter.name).upper()}`"
    else:
        names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    needed = "*required*" if parameter.required else _default(parameter.default)
    return f"| {names} | {needed} | {_cell(parameter.help or '')} |\n"


def _default(value: Any) -> str:
    if value is None or value in ("", (), [], False) or callable(value):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _is_hidden(parameter: Any) -> bool:
    return bool(getattr(parameter, "hidden", False)) or parameter.name == "help"


def _first_sentence(text: str | None) -> str:
    return re.split(r"(?<=[.;])\s", (text or "").strip(), maxsplit=1)[0]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render())
