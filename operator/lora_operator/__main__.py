"""`python -m lora_operator`: run the operator, in a cluster or beside one (with the current kubeconfig).

`python -m lora_operator render job.yaml` prints the children of a job instead.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_api.exits import ExitCode
from lora_api.job import InvalidResourceError

from .logs import configure_logging
from .render import render
from .settings import Settings, SettingsError, read_settings

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lora-operator", description=__doc__, epilog=Settings.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command")
    children = commands.add_parser("render", help="print the child Jobs that a LoraTrainingJob would get")
    children.add_argument("job", type=Path)
    arguments = parser.parse_args(argv)
    try:
        settings = read_settings()
        if arguments.command == "render":
            print(render(arguments.job, settings.profiles_file, settings.images), end="")
            return ExitCode.OK
        run(settings)
    except (SettingsError, InvalidResourceError) as error:
        print(f"lora-operator: {error}", file=sys.stderr)
        return ExitCode.BAD_CONFIGURATION
    return ExitCode.OK


def run(settings: Settings) -> None:
    """Run until a signal, or until an error that only a new process can recover from."""
    from .api import NotServedError
    from .process import LeaseLostError, operate

    configure_logging(settings.log_format)
    try:
        with asyncio.Runner(loop_factory=_event_loop_factory()) as runner:
            runner.run(operate(settings))
    except (NotServedError, LeaseLostError) as error:
        log.error("%s", error)
        raise SystemExit(1) from None
    except SettingsError:
        raise
    except Exception:
        # Python would print the traceback, which is not a line of JSON
        log.exception("an unexpected error ends the process")
        raise SystemExit(1) from None


def _event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the constructor of uvloop's event loop, which needs less CPU time; None for asyncio's, without uvloop (Windows)."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(main())
