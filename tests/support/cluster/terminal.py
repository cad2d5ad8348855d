"""A pseudo-terminal of a given size that runs a program and records its output."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

HOME = "\x1b[H"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    def __init__(self, command: list[str], environment: Mapping[str, str], rows: int, columns: int) -> None:
        self.written = ""
        """All output, escape sequences included."""
        self._rows = rows
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        # The environment of the tests may have the size of another terminal.
        given = {name: value for name, value in environment.items() if name not in ("LINES", "COLUMNS")}
        given["TERM"] = "xterm-256color"
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=given, start_new_session=True
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def wait_for(self, words: str, seconds: float = 20.0) -> float:
        """Read until the screen shows a text, and return the seconds that it took."""
        started = time.monotonic()
        while words not in self.screen:
            left = started + seconds - time.monotonic()
            assert left > 0, f"{words!r} is not on the screen:\n{self.screen}"
            self.read(left)
        return time.monotonic() - started

    @property
    def screen(self) -> str:
        """Return the last complete frame as text."""
        *_, before, last = ["", *self.written.split(HOME)]
        whole = last.count("\n") >= self._rows - 1
        return ESCAPES.sub("", last if whole else before)

    def write(self, text: str) -> None:
        """Type a text."""
        os.write(self._master, text.encode())

    def interrupt(self) -> str:
        """Send Ctrl-C; return what the program writes after it, as text."""
        started = len(self.written)
        self.process.send_signal(signal.SIGINT)
        return self.end(started)

    def end(self, started: int = 0) -> str:
        """Read until the program ends; return what it has written since the position `started`, as text."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self.read(1.0):
            pass
        self.process.wait(60)
        return ESCAPES.sub("", self.written[started:])

    def read(self, seconds: float) -> bool:
        """Read what is written within some seconds; return whether there may be more."""
        ready, _, _ = select.select([self._master], [], [], seconds)
        if ready:
            try:
                self.written += os.read(self._master, 1 << 16).decode(errors="replace")
            except OSError:  # the program has closed its side
                return False
        return bool(ready) or self.process.poll() is None
