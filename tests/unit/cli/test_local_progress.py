"""Another program may listen on the port of a local stage. Its answers must not have other effects."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_api.stages import StageName
from lora_api.status import Progress
from lora_cli.local.processes import LocalJob, new_child
from tests.support.raw_server import serve_raw

PROGRESS = b'{"step": 3, "totalSteps": 9}'


@pytest.fixture
def stage() -> Iterator[Callable[[bytes], tuple[LocalJob, list[bytes]]]]:
    """Return a function that serves one answer on the port of a job's stage, and returns the job and the requests."""
    with ExitStack() as servers:

        def answer_with(answer: bytes) -> tuple[LocalJob, list[bytes]]:
            requests: list[bytes] = []

            def respond(connection: socket.socket, request: bytes) -> None:
                requests.append(request)
                connection.sendall(answer)

            port = servers.enter_context(serve_raw(respond))
            config: Any = SimpleNamespace(progress_host="127.0.0.1", progress_port=port)
            job = LocalJob(new_child("a", StageName.TRAIN, 1), config, Path(), 0)
            job.process = SimpleNamespace()  # type: ignore[assignment]
            return job, requests

        yield answer_with


def test_the_progress_does_not_go_through_a_proxy(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    job, _ = stage(b"HTTP/1.0 200 OK\r\n\r\n" + PROGRESS)
    assert job.progress() == Progress(step=3, total_steps=9)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1:{port}/other\r\n\r\n",
        b"HTTP/1.0 302 Found\r\nLocation: http://a..b/\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n" + b" " * (64 << 20) + PROGRESS,
        b"not HTTP",
        b"",
    ],
)
def test_any_other_answer_is_no_progress(stage: Any, answer: bytes) -> None:
    job, requests = stage(answer)
    assert job.progress() is None
    assert len(requests) == 1
