"""Outages of the store and a full disk during a training: how the run ends, and how the next one resumes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import urllib3
from safetensors import SafetensorError

from lora_api.exits import ExitCode
from lora_api.reasons import Reason
from lora_api.stages import decode_result
from lora_trainer.train import checkpoint
from lora_trainer.train.stage import main
from tests.integration.train.conftest import AdapterMaker, Job, JobMaker
from tests.integration.train.test_resuming import checkpoint_steps, stop_after

SETTINGS = {"maxSteps": 6, "checkpoint": {"everySteps": 2, "keepLast": 2}}


class CuttableProxy:
    """A TCP proxy whose connections can be cut: while it is cut, existing connections are closed and new ones refused."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = []
        self.is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.is_cut = True
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def restore(self) -> None:
        self.is_cut = False

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self.is_cut:
                    near.close()
                    continue
                host, port = self._target.split(":")
                far = socket.create_connection((host, int(port)))
                self._ends += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            end.close()


@pytest.fixture
def proxy(make_job: JobMaker) -> Iterator[CuttableProxy]:
    proxy = CuttableProxy(make_job().config.store.endpoint)
    yield proxy
    proxy.close()


def through(proxy: CuttableProxy, job: Job) -> Job:
    return job.with_config(store=job.config.store.model_copy(update={"endpoint": proxy.endpoint}))


def ended(job: Job) -> tuple[int, Reason]:
    """Run the stage as its process does, and return the exit code and the reason in its termination message."""
    code = main(job.config_file())
    result = decode_result(job.termination_message())
    assert result is not None
    return code, result.reason


def test_a_short_outage_of_the_store_is_waited_for(
    make_job: JobMaker, proxy: CuttableProxy, uninterrupted: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(**SETTINGS)

    def away() -> None:
        proxy.cut()
        threading.Timer(2, proxy.restore).start()

    stop_after(monkeypatch, 4, away)
    started = time.monotonic()
    assert ended(through(proxy, job)) == (ExitCode.OK, Reason.TRAINED)
    assert time.monotonic() - started > 2
    assert job.attempt_file("adapter.safetensors") == uninterrupted(**SETTINGS)


def test_a_long_outage_ends_the_run_which_resumes_later(
    make_job: JobMaker, proxy: CuttableProxy, uninterrupted: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(**SETTINGS)
    pauses: list[float] = []
    with monkeypatch.context() as patch:
        patch.setattr(urllib3.util.retry.time, "sleep", pauses.append)
        stop_after(patch, 4, proxy.cut)
        assert ended(through(proxy, job)) == (ExitCode.UNAVAILABLE, Reason.STORE_UNAVAILABLE)
    assert 10 < sum(pauses) < 60
    assert checkpoint_steps(job) == [2]
    proxy.restore()
    assert ended(through(proxy, job)) == (ExitCode.OK, Reason.TRAINED)
    assert job.attempt_file("adapter.safetensors") == uninterrupted(**SETTINGS)


def test_a_full_disk_is_named_and_the_last_checkpoint_survives(
    make_job: JobMaker, uninterrupted: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(**SETTINGS)

    def full(*_: object) -> None:
        # The library's message on a full file system.
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        stop_after(patch, 4, lambda: patch.setattr(checkpoint, "save_file", full))
        assert ended(job) == (ExitCode.BAD_SETUP, Reason.DISK_FULL)
    assert checkpoint_steps(job) == [2]
    assert ended(job) == (ExitCode.OK, Reason.TRAINED)
    assert job.attempt_file("adapter.safetensors") == uninterrupted(**SETTINGS)
