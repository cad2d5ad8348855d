"""Errors of the command. Each class has an exit code. `report_errors` prints them and exits with that code."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from lora_api.job import InvalidResourceError

from .console import print_error
from .exits import Exit


class CommandError(Exception):
    """A command cannot do its work. The message says what is wrong and what to change, one line for each problem."""

    exit_code = Exit.USAGE


class UsageError(CommandError):
    """The command line, a file named on it or an environment variable is wrong."""


class MissingInputError(CommandError):
    """The input does not exist yet, such as images of a job."""

    exit_code = Exit.NO_INPUT


class ClusterError(CommandError):
    """The API server refused a request, or has no such object."""


class ServiceUnavailableError(CommandError):
    """A service does not answer."""

    exit_code = Exit.UNAVAILABLE


class ClusterUnavailableError(ClusterError, ServiceUnavailableError):
    """The API server does not answer."""

    exit_code = Exit.UNAVAILABLE


class ClusterRefusedError(ClusterError):
    """The API server does not accept the user's credentials or permissions."""

    exit_code = Exit.REFUSED


class MachineError(CommandError):
    """This machine lacks something: room on a disk, a writable folder, a program."""

    exit_code = Exit.SETUP


def require_folder(folder: Path) -> None:
    """Check that a folder of photographs exists.

    Raises:
        UsageError: when it does not.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: name the folder that holds the photographs")


@contextmanager
def report_errors() -> Iterator[None]:
    """Print an expected error as plain text on stderr and exit with its code."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        print_error(_message(error))
        raise typer.Exit(code) from None


def _exit_code(error: Exception) -> int | None:
    """Return the exit code of an expected error; None for an error in the program."""
    # Imported here: the start of `lora --help` needs neither the operator nor the trainer.
    from lora_operator.settings import SettingsError
    from lora_trainer.errors import StageError

    if isinstance(error, CommandError | StageError):
        return int(error.exit_code)
    if isinstance(error, InvalidResourceError | SettingsError):
        return Exit.USAGE
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        # The error concerns a file of this machine. Network errors are mapped where they occur.
        return Exit.SETUP
    return None


def _message(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    place = f" at {error.filename}" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"the disk is full{place}: free some space, or name another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"cannot write or read{place}: {error.strerror}; name a folder that you own"
    return f"cannot use{place.removeprefix(' at')}: {error.strerror}"
