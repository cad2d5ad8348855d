"""Ports for servers of tests."""

from __future__ import annotations

import random
import socket

PORTS = [*range(15_000, 20_000), *range(23_000, 30_000)]
"""Below Linux's ephemeral ports, so that no outgoing connection takes a port before its server does, and none of the
local store's."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now.

    It is drawn from the system's randomness, because test processes that share a seed would draw the same ports.
    """
    source = random.SystemRandom()
    while True:
        port = source.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
