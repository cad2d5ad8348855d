"""Behaviour of all commands: the options `-q` and `-v`, and one exit code for a wrong command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer
from typer._click.exceptions import NoArgsIsHelpError, UsageError
from typer.core import TyperGroup

from .console import Verbosity, print_error
from .exits import Exit

CLICK_USAGE = 2
"""Click's own exit code for a wrong command line."""
REPLACEMENTS = {"Value error, ": "", "Input should be": "it must be"}
"""Words of pydantic in Typer's messages, and their replacements."""
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print details on stderr.")]


class Group(TyperGroup):
    """Command group that prints usage errors like all other errors, and exits with `Exit.USAGE`.

    Typer would draw a box around them, and would wrap lines even if stderr is a pipe.
    """

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _report_usage_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _report_usage_errors():
            return super().invoke(ctx)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except SystemExit as ended:
            # The help was printed because no command was given. Only the exit code is replaced.
            if ended.code == CLICK_USAGE:
                raise SystemExit(int(Exit.USAGE)) from None
            raise


@contextmanager
def _report_usage_errors() -> Iterator[None]:
    try:
        yield
    except NoArgsIsHelpError:
        raise
    except UsageError as error:
        message = error.format_message()
        for words, replacement in REPLACEMENTS.items():
            message = message.replace(words, replacement)
        print_error(message)
        if error.ctx is not None:
            print_error(f"`{error.ctx.command_path} -h` shows the options")
        raise typer.Exit(Exit.USAGE) from None


def verbosity(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options `-q` and `-v` to a command, so that its function needs no parameters for them."""

    @wraps(function)
    def command(*args: Any, quiet: bool = False, verbose: bool = False, **kwargs: Any) -> None:
        Verbosity.quiet, Verbosity.verbose = quiet, verbose
        function(*args, **kwargs)

    # Typer reads the options from the signature and the annotations.
    hints = get_type_hints(function, include_extras=True) | {"quiet": Quiet, "verbose": Verbose}
    signature = inspect.signature(function)
    parameters = [
        *signature.parameters.values(),
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False)
            for name in ("quiet", "verbose")
        ),
    ]
    command.__annotations__ = hints
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[p.replace(annotation=hints[p.name]) for p in parameters]
    )
    return command
