"""The HTTP pool of the S3 client, with limits on what a store, or a proxy in front of it, may answer.

urllib3 follows redirects, waits as long as a response asks, and reads a response completely, however large it is once
it is decompressed. A store needs none of that: its redirects name another region and cannot be followed, because
the signature holds the host.
"""

from __future__ import annotations

import threading
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

import certifi
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.response import BaseHTTPResponse

MAX_RESPONSE_BYTES = 16 << 20
"""Maximum size of a response that is not an object: a page of a list of 1,000 objects, or an error."""
MAX_PAGES = 1000
"""Maximum number of pages of one list."""
RETRIED = (500, 502, 503, 504)
"""HTTP statuses after which a request is repeated."""
PIECE = 1 << 20
"""Bytes that are sent at a time."""
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 30.0
"""How long to wait for a connection, and then for each answer or for the store to go on reading."""


class _Connection(HTTPConnection):
    """A connection that waits as long for a store that reads slowly as for its answer.

    urllib3 uses the timeout of the connection while it sends the first request, and Python's sockets apply it to the
    whole body: an upload of a gigabyte would have to be sent in five seconds.
    """

    def connect(self) -> None:
        super().connect()
        assert self.sock is not None
        self.sock.settimeout(ANSWER_SECONDS)

    def send(self, data: Any) -> None:
        """Send data in pieces, each of which has the timeout."""
        if not isinstance(data, bytes | bytearray):
            super().send(data)
            return
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            super().send(view[start : start + PIECE])


class _TLSConnection(_Connection, HTTPSConnection):
    """The same with TLS."""


class _HostPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSHostPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class BoundedPool(urllib3.PoolManager):
    """A pool whose responses are bounded in size, time and number."""

    def __init__(self, ca_file: str, retries: int) -> None:
        """
        Args:
            ca_file: PEM file of the store's certificate authority; empty for the public authorities.
            retries: number of retries of a request that fails because the store is absent or overloaded.
        """
        super().__init__(
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=ANSWER_SECONDS),
            retries=urllib3.Retry(
                total=retries,
                other=0,  # do not retry other errors, such as an untrusted certificate: they do not go away
                backoff_factor=0.5,
                backoff_max=8,
                respect_retry_after_header=False,
            ),
            cert_reqs="CERT_REQUIRED",
            ca_certs=ca_file or certifi.where(),
        )
        self.pool_classes_by_scheme = {"http": _HostPool, "https": _TLSHostPool}
        self._lists = threading.local()

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = True, *, preload_content: bool = True, **options: Any
    ) -> BaseHTTPResponse:
        """Send a request, and repeat it while the store is overloaded.

        Args:
            redirect: ignored.
            preload_content: whether to read the response. A response that is not read has HTTP 200, 204 or 206.

        Raises:
            urllib3.exceptions.ProtocolError: when a response or a list is too long.
            urllib3.exceptions.MaxRetryError: when no retries are left.
        """
        self._count_page(url)
        retries: urllib3.Retry = options.pop("retries", None) or self.connection_pool_kw["retries"]
        while True:
            response = super().urlopen(
                method, url, redirect=False, preload_content=False, retries=retries, **options
            )
            if response.status in (200, 204, 206) and not preload_content:
                return response
            response = _read(response, method)
            if response.status not in RETRIED or method not in urllib3.Retry.DEFAULT_ALLOWED_METHODS:
                return response
            # raises when none are left
            retries = (response.retries or retries).increment(method, url, response=response)
            retries.sleep()

    def _count_page(self, url: str) -> None:
        """Refuse a list that does not end. The client follows each token to the next page."""
        follows = "continuation-token" in parse_qs(urlsplit(url).query)
        self._lists.pages = getattr(self._lists, "pages", 0) + 1 if follows else 0
        if self._lists.pages >= MAX_PAGES:
            raise urllib3.exceptions.ProtocolError(f"its list has more than {MAX_PAGES} pages")


def _read(response: BaseHTTPResponse, method: str) -> BaseHTTPResponse:
    """Read a response within `MAX_RESPONSE_BYTES`, and return it with its decoded body."""
    try:
        body = response.read(MAX_RESPONSE_BYTES + 1)
        if len(body) > MAX_RESPONSE_BYTES:
            raise urllib3.exceptions.ProtocolError(f"its response has more than {MAX_RESPONSE_BYTES} bytes")
    finally:
        # A connection with an unread rest cannot be used again. One that is read to the end is in the pool already.
        response.close()
    headers = response.headers.copy()
    headers.pop("content-encoding", None)  # the body is decoded
    return urllib3.HTTPResponse(
        body=BytesIO(body),
        headers=headers,
        status=response.status,
        reason=response.reason,
        preload_content=False,
        request_method=method,
        request_url=response.geturl(),
        retries=response.retries,
    )
