"""Behaviour of all commands: the options `-q` and `-v`, and one exit code for a wrong command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup

from .console import Verbosity
from .exits import Exit

CLICK_USAGE = 2
"""Click's own exit code for a wrong command line."""
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print details on stderr.")]


class Group(TyperGroup):
    """Command group that exits with `Exit.USAGE` on usage errors, instead of click's code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except SystemExit as ended:
            # Click has already printed the error. Only its exit code is replaced.
            if ended.code == CLICK_USAGE:
                raise SystemExit(int(Exit.USAGE)) from None
            raise


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
