"""Handling of SIGTERM and SIGINT.

A signal ends the process at once or, during training, after the current step and its checkpoint.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Records whether this process was asked to stop."""

    def __init__(self) -> None:
        self.asked = False
        self._deferred = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Handle the signals within the block. They raise KeyboardInterrupt, except within `deferred`."""
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Record signals within the block without raising. The code in the block checks `asked`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if not self._deferred:
            raise KeyboardInterrupt
