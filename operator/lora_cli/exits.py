"""Exit codes of `lora`: one enum for every command. docs/how-to/command-line.md has the same table."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Values above 63 are those of sysexits.h, as in the trainer's containers (`lora_api.exits`)."""

    OK = 0
    """The command succeeded."""
    FAILED = 1
    """The command worked and its result is negative: a job failed, does not fit, or a check found problems."""
    WAITING = 3
    """A local job is suspended or waits for approval; the same command resumes it."""
    USAGE = 64
    """The command line, a file or a name is wrong."""
    BAD_DATA = 65
    """Images or captions cannot be used."""
    NO_INPUT = 66
    """The input does not exist yet: images, captions or an adapter."""
    UNAVAILABLE = 69
    """The API server, the store or another service does not answer; try again later."""
    INTERNAL = 70
    """An error in this program."""
    REFUSED = 77
    """Credentials or permissions are missing or refused."""
    SETUP = 78
    """This machine or a service needs attention: a full disk, a missing program, a missing bucket."""
    INTERRUPTED = 130
    """Interrupted by Ctrl-C."""
