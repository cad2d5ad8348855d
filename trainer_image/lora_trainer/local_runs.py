"""Folders of local runs, which `lora run` writes: HOME/runs/NAMESPACE/NAME."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from lora_api.status import Phase

LOCK = "lock"
"""File that `lora run` holds a lock on while it works on the job."""
AT_REST = (Phase.SUCCEEDED, Phase.FAILED, Phase.AWAITING_APPROVAL, Phase.SUSPENDED)
"""Phases in which `lora run` ends."""


def is_interrupted(folder: Path, phase: Phase) -> bool:
    """Return whether a job's phase is that of a running job, but its `lora run` has ended without a result.

    It was killed, or the machine was switched off.
    """
    file = folder / LOCK
    if phase in AT_REST:
        return False
    if not file.exists():
        return True
    try:
        with FileLock(file, timeout=0):
            return True
    except Timeout:
        return False
    except OSError:  # of another user
        return False
