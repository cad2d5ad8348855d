"""Output of `lora`: cleaned text for people, JSON or YAML for programs."""

from __future__ import annotations

import json
import os
import unicodedata
from enum import StrEnum
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from .manifests.writer import dump_yaml

PIPE_WIDTH = 10_000
"""Width, in columns, of output that is not a terminal. It is large, so that lines for programs are never wrapped."""
UNSAFE_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that a terminal acts on or does not show: control characters (escape sequences begin with
one), format characters (bidirectional marks, zero-width characters), surrogates, separators of lines."""
JOINERS = "\u200c\u200d"
"""Format characters that ordinary words of several scripts, and emoji, contain."""


class Format(StrEnum):
    JSON = "json"
    YAML = "yaml"


class Verbosity:
    """The verbosity that `-q` and `-v` set. It is global to the process."""

    quiet = False
    verbose = False


def clean(text: object, *, lines: bool = False) -> str:
    """Make text of any origin safe to print on a terminal.

    Args:
        lines: keep line breaks; otherwise they become spaces.

    Returns:
        The text with each unsafe character replaced by `\\ufffd`, so that its presence stays visible.
    """
    result = []
    for character in str(text):
        if character == "\n" and lines:
            result.append(character)
        elif character in "\n\t":
            result.append(" ")
        elif unicodedata.category(character) in UNSAFE_CATEGORIES and character not in JOINERS:
            result.append("\ufffd")
        else:
            result.append(character)
    return "".join(result)


class SafeConsole(Console):
    """Console that discards its output once the pipe or terminal is closed. The command continues to work."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().print(*args, **kwargs)
        except OSError:
            discard_output()

    def on_broken_pipe(self) -> None:
        discard_output()


def discard_output() -> None:
    """Redirect stdout and stderr of this process to /dev/null."""
    sink = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(sink, stream)
    os.close(sink)


def out() -> Console:
    """Return a console on stdout. It is built for each use, because tests and pagers replace the stream."""
    return _console(stderr=False)


def err() -> Console:
    """Return a console on stderr."""
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    # markup=False: text from clusters, files and services must not be interpreted as rich's markup.
    console = SafeConsole(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = SafeConsole(stderr=stderr, markup=False, highlight=False, emoji=False, width=PIPE_WIDTH)
    return console


def say(text: object, style: str = "") -> None:
    """Print one line for people on stdout; nothing with `-q`."""
    if not Verbosity.quiet:
        out().print(Text(clean(text), style=style), soft_wrap=True)


def label(name: str, value: object) -> None:
    """Print a name and its value, aligned with other labels."""
    say(f"{name:<12} {clean(value)}")


def note(text: object) -> None:
    """Print a detail on stderr, with `-v` only."""
    if Verbosity.verbose:
        err().print(Text(clean(text, lines=True), style="dim"), soft_wrap=True)


def warn(text: object) -> None:
    """Print a warning on stderr."""
    line = Text.assemble(("lora: warning: ", "yellow"), clean(text, lines=True))
    err().print(line, soft_wrap=True)


def print_error(text: object) -> None:
    """Print an error on stderr, one line for each line of its message."""
    for line in clean(text, lines=True).splitlines() or [""]:
        err().print(Text.assemble(("lora: ", "red"), line), soft_wrap=True)


def write(data: Any, form: Format) -> None:
    """Print data for programs on stdout, with all characters that a terminal could interpret escaped."""
    if form == Format.JSON:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=True))
    else:
        typer.echo(dump_yaml(data, ascii_only=True), nl=False)


def write_line(data: Any, form: Format) -> None:
    """Print one object of a stream: a line of JSON, or a YAML document."""
    if form == Format.JSON:
        typer.echo(json.dumps(data, ensure_ascii=True))
    else:
        typer.echo("---\n" + dump_yaml(data, ascii_only=True), nl=False)
