"""Exit codes of the stages, based on sysexits.h."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit code of a stage. Those in `PERMANENT` are never retried."""

    OK = 0
    BAD_CONFIGURATION = 64
    """A setting of the job or the profile cannot be used."""
    BAD_DATA = 65
    """The dataset cannot be used, for example because images are damaged."""
    NO_INPUT = 66
    """The dataset has no images."""
    UNAVAILABLE = 69
    """A service could not be reached through all retries."""
    INTERNAL = 70
    """An unexpected error."""
    INTERRUPTED = 75
    """The stage was interrupted and its state is saved. A retry does not count towards runPolicy.backoffLimit."""
    REFUSED_CREDENTIALS = 77
    """A service refused the credentials."""
    BAD_SETUP = 78
    """The installation cannot be used, for example because a Secret has no such key."""


PERMANENT = frozenset(
    {
        ExitCode.BAD_CONFIGURATION,
        ExitCode.BAD_DATA,
        ExitCode.NO_INPUT,
        ExitCode.REFUSED_CREDENTIALS,
        ExitCode.BAD_SETUP,
    }
)
