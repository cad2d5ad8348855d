"""A server that answers each connection by code, for responses that no HTTP library would send."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

RESPONSE_SECONDS = 10
"""Time limit for the last answer, at the end of the server."""


@contextmanager
def serve_raw(answer: Callable[[socket.socket, bytes], None]) -> Iterator[int]:
    """Call `answer` with each connection and its request, one at a time; yield the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    answer(connection, connection.recv(65536))
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(RESPONSE_SECONDS)
