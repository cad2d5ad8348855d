"""Malformed HTTP responses."""

from __future__ import annotations

import socket
import struct

from werkzeug import Request, Response


def cut_off(request: Request, *, reset: bool = False) -> Response:
    """Announce 5,000 bytes, send four, and close the connection, with or without a reset."""
    connection: socket.socket = request.environ["werkzeug.socket"]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
    connection.sendall(head + b"half")
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    else:
        connection.shutdown(socket.SHUT_RDWR)
    return Response()  # never sent
