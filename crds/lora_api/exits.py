"""Exit codes of the steps, after sysexits.h."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a step ended. `PERMANENT` ones are never tried again."""

    OK = 0
    BAD_CONFIGURATION = 64
    BAD_DATA = 65
    NO_INPUT = 66
    UNAVAILABLE = 69
    INTERNAL = 70
    INTERRUPTED = 75
    """A checkpoint is saved: try again, without charging the back-off limit."""
    REFUSED_CREDENTIALS = 77
    BAD_SETUP = 78


PERMANENT = frozenset(
    {
        ExitCode.BAD_CONFIGURATION,
        ExitCode.BAD_DATA,
        ExitCode.NO_INPUT,
        ExitCode.REFUSED_CREDENTIALS,
        ExitCode.BAD_SETUP,
    }
)
