"""SIGTERM and SIGINT: at once where nothing would be lost, after the step and its checkpoint where work is done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Whether this process was told to stop."""

    def __init__(self) -> None:
        self.asked = False
        self._deferred = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take the signals over: outside of `deferred` they raise KeyboardInterrupt."""
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only remember a signal that comes in this block, which looks at `asked` itself."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if not self._deferred:
            raise KeyboardInterrupt
