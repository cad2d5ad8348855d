"""The port of a local stage may be taken by another program: its answer must not lead anywhere else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_api.stages import StageName
from lora_api.status import Progress
from lora_cli.local.processes import LocalJob, new_child

PROGRESS = b'{"step": 3, "totalSteps": 9}'


@pytest.fixture
def stage() -> Iterator[Callable[[bytes], tuple[LocalJob, list[bytes]]]]:
    """Serves one answer, and gives a job whose stage would listen there, with the requests that arrive."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer_with(answer: bytes) -> tuple[LocalJob, list[bytes]]:
        requests: list[bytes] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    requests.append(connection.recv(4096))
                    try:
                        connection.sendall(answer)
                    except OSError:
                        continue

        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]
        config: Any = SimpleNamespace(progress_host="127.0.0.1", progress_port=port)
        job = LocalJob(new_child("a", StageName.TRAIN, 1), config, Path(), 0)
        job.process = SimpleNamespace()  # type: ignore[assignment]
        return job, requests

    yield answer_with
    listener.close()


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
