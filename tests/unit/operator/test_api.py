"""What the operator's client sends to the API server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from kubernetes.aio import client

from lora_operator.api import BATCH_JOBS, EVENTS, MAX_PAGE_BYTES, PODS, RESOURCES, Api, Kind

MAX_OBJECT_BYTES = 1 << 20
"""About what the API server stores of one object."""
LIST_BYTES = 32 << 20
"""What a page may take of the operator's memory, as bytes that were sent."""

Request = tuple[str, str, Any]
"""Method, path with query, and body."""


@pytest.fixture
def server() -> Iterator[tuple[str, list[Request]]]:
    """A server that records requests, and has one object on each of three pages."""
    requests: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_DELETE(self) -> None:
            self._answer()

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            requests.append((self.command, self.path, json.loads(body) if body else None))
            metadata = {"resourceVersion": "1", "continue": "" if len(requests) == 3 else "next"}
            answer = json.dumps({"metadata": metadata, "items": [{}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()


def test_resources_are_listed_in_pages_that_fit_into_memory(server: tuple[str, list[Request]]) -> None:
    host, requests = server

    async def main() -> int:
        async with client.ApiClient(client.Configuration(host=host)) as connection:
            return len([page async for page in Api(connection).list_pages(RESOURCES)])

    assert asyncio.run(main()) == len(requests) == 3
    for _, path, _ in requests:
        [limit] = parse_qs(urlsplit(path).query)["limit"]
        assert 0 < int(limit) * MAX_OBJECT_BYTES <= LIST_BYTES


def test_only_the_object_that_was_seen_is_deleted(server: tuple[str, list[Request]]) -> None:
    host, requests = server

    async def main() -> None:
        async with client.ApiClient(client.Configuration(host=host)) as connection:
            await Api(connection).delete(BATCH_JOBS, "studio", "statue", "seen")

    asyncio.run(main())
    [(method, path, body)] = requests
    assert (method, path) == ("DELETE", "/apis/batch/v1/namespaces/studio/jobs/statue")
    assert body["preconditions"] == {"uid": "seen"}


@pytest.fixture
def large() -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """A server with 60 objects of 1 MB each, and the start and the limit of each page that was requested."""
    pages: list[tuple[int, int]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            start, limit = int(query.get("continue", ["0"])[0]), int(query["limit"][0])
            pages.append((start, limit))
            end = min(start + limit, 60)
            items = [
                {"metadata": {"name": str(n), "annotations": {"x": "x" * (1 << 20)}}}
                for n in range(start, end)
            ]
            metadata = {"resourceVersion": "1", "continue": str(end) if end < 60 else ""}
            answer = json.dumps({"metadata": metadata, "items": items}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", pages
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", [BATCH_JOBS, PODS, EVENTS, RESOURCES], ids=lambda kind: kind.plural)
def test_a_page_of_large_objects_is_listed_in_smaller_ones(
    large: tuple[str, list[tuple[int, int]]], kind: Kind
) -> None:
    """A tenant can give the operator's labels to a hundred pods of a megabyte each."""
    host, pages = large

    async def main() -> list[str]:
        async with client.ApiClient(client.Configuration(host=host)) as connection:
            return [
                item["metadata"]["name"]
                async for page, _ in Api(connection).list_pages(kind)
                for item in page
                if len(page) * MAX_OBJECT_BYTES <= MAX_PAGE_BYTES
            ]

    assert asyncio.run(main()) == [str(n) for n in range(60)]
    assert pages[0] == (0, kind.page_size)
    assert pages[-1][1] < 16
