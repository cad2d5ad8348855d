"""Pods that answer the operator's progress requests with invalid responses, on real sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic

import pytest

from lora_api.status import Progress
from lora_operator import poller
from lora_operator.observe import StagePod, observe_stage_pod
from lora_operator.poller import MAX_BODY_BYTES, BadResponseError, Poller, check_address, fetch_progress
from tests.support.raw_children import raw_pod

PROGRESS = Progress(step=3, total_steps=500, display="3/500")
BODY = json.dumps(PROGRESS.model_dump(mode="json", by_alias=True, exclude_none=True)).encode()
OK = b"HTTP/1.0 200 OK\r\n\r\n"

Answer = bytes | Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def pod_server(answer: Answer, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
    """Serve one answer to every connection and yield the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if isinstance(answer, bytes):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
                await writer.drain()
            else:
                await answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, host, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def pod(name: str, ip: str, namespace: str = "studio") -> StagePod:
    item = observe_stage_pod(raw_pod(namespace, name, f"u-{name}", name=name, phase="Running", podIP=ip))
    return replace(item, pod=replace(item.pod, started_at=None))


async def ask(answer: Answer) -> Progress:
    async with pod_server(answer) as port:
        return await asyncio.wait_for(fetch_progress("127.0.0.1", port), 5)


def test_progress_of_a_pod_is_read() -> None:
    assert asyncio.run(ask(OK + BODY)) == PROGRESS
    assert asyncio.run(ask(b"HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\n\r\n" + BODY)) == PROGRESS


def test_progress_of_a_real_stage_is_read() -> None:
    from lora_trainer.progress import Reporter

    reporter = Reporter("127.0.0.1", 0)
    try:
        reporter.update(step=3, total=500)
        assert asyncio.run(fetch_progress("127.0.0.1", reporter.port)).step == 3
    finally:
        reporter.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff" * 100,
        b"HTTP/1.0 302 Found\r\nLocation: http://a..b/\r\n\r\n" + BODY,
        b"HTTP/1.0 500 Oops\r\n\r\n" + BODY,
        b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"{}" + b" " * 10_000_000),
        b"HTTP/1.0 200 OK\r\nCONTENT-ENCODING : gzip\r\n\r\n" + BODY,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + BODY,
        b"HTTP/2 200\r\n\r\n" + BODY,
        OK + b'{"step": NaN}',
        OK + b'{"step": 1, "totalSteps": Infinity}',
        OK + BODY + BODY,
        OK + b"not JSON",
        OK + b"[" * MAX_BODY_BYTES,
        OK + b'{"step": 1' + b"0" * 30 + b"}",
        OK + b'{"step": -1}',
        OK + b'{"loss": "' + b"9" * 15_000 + b'"}',
        OK + b'{"etaSeconds": 1e400}',
        OK + b'{"reportedAt": "9999-12-31T23:59:59Z"}',
        OK + b" " * (MAX_BODY_BYTES + 1),
        OK + BODY + b" " * MAX_BODY_BYTES,
        b"HTTP/1.0 200 OK\r\nX: " + b"x" * 5000 + b"\r\n\r\n" + BODY,
    ],
)
def test_other_responses_are_refused(answer: bytes) -> None:
    with pytest.raises(BadResponseError):
        asyncio.run(ask(answer))


def test_an_endless_answer_takes_no_memory() -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(b"HTTP/1.0 200 OK\r\nX-Header: x\r\n" * 1000)
            await writer.drain()
            sent += 1

    tracemalloc.start()
    with pytest.raises(BadResponseError):
        asyncio.run(ask(endless))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20, f"{peak} bytes for an answer of {sent} parts"


def test_a_redirect_is_not_followed() -> None:
    visited = []

    async def victim(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visited.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK + BODY)

    async def run() -> None:
        async with pod_server(victim) as port:
            location = f"HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1:{port}/progress\r\n\r\n"
            with pytest.raises(BadResponseError):
                await ask(location.encode())

    asyncio.run(run())
    assert visited == []


@pytest.mark.parametrize(
    "ip",
    [
        "a..b",
        "localhost",
        "",
        "169.254.169.254",
        "fe80::1",
        "fe80::1%eth0",
        "::ffff:169.254.169.254",
        "::ffff:a9fe:a9fe",
        "64:ff9b::169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::",
        "fd00:ec2::254",
        "::",
        "::169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "0.0.0.0",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "2852039166",
        "0xa9fea9fe",
        "169.254.169.254:80",
        "[::1]",
        "10.0.0.1\r\nX: y",
        " 10.0.0.1",
    ],
)
def test_addresses_that_no_pod_has_are_not_polled(ip: str) -> None:
    with pytest.raises(BadResponseError):
        check_address(ip)


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


def test_a_thousand_silent_pods_neither_stop_the_heartbeat_nor_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pods of one tenant do not answer. The pod of another one is polled in the first round, which ends in time."""
    monkeypatch.setattr(poller, "ROUND_SECONDS", 1.0)
    heard = []

    async def run() -> float:
        async with pod_server(silence, "127.0.0.2") as port, pod_server(OK + BODY, "127.0.0.3", port):
            silent = [pod(f"silent-{i}", "127.0.0.2", "mute") for i in range(1000)]
            asking = Poller(
                lambda: [*silent, pod("honest", "127.0.0.3")], lambda item, _: heard.append(item), port
            )
            started = asking.last_heartbeat = monotonic()
            await asking.run_round()
            assert asking.last_heartbeat > started
            return monotonic() - started

    assert asyncio.run(run()) < 60
    assert [item.pod.name for item in heard] == ["honest"]


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send single bytes with pauses, so that no read times out."""
    for byte in OK + BODY:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


@asynccontextmanager
async def slow_and_honest(answer: Answer, heard: list[str]) -> AsyncIterator[Poller]:
    """A poller of a slow pod and then of an honest one. The names of pods that report progress are added to a list."""
    async with pod_server(answer, "127.0.0.2") as port, pod_server(OK + BODY, "127.0.0.3", port):
        pods = [pod("slow", "127.0.0.2"), pod("honest", "127.0.0.3")]
        yield Poller(lambda: pods, lambda item, _: heard.append(item.pod.name), port)


@pytest.mark.parametrize("answer", [silence, trickle])
def test_a_slow_pod_times_out_and_the_next_one_is_polled(
    monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    monkeypatch.setattr(poller, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(poller, "CONCURRENCY", 1)
    heard: list[str] = []

    async def run() -> None:
        async with slow_and_honest(answer, heard) as asking:
            await asking.run_round()

    asyncio.run(run())
    assert heard == ["honest"]


def test_an_error_about_one_pod_leaves_the_others_of_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "CONCURRENCY", 1)
    heard = []

    def report(item: StagePod, progress: Progress) -> None:
        if item.pod.name == "evil":
            raise RuntimeError("an error of a pod")
        heard.append(item.pod.name)

    async def run() -> None:
        async with pod_server(OK + BODY) as port:
            pods = [pod("evil", "127.0.0.1"), pod("honest", "127.0.0.1")]
            await Poller(lambda: pods, report, port).run_round()

    asyncio.run(run())
    assert heard == ["honest"]


def test_pods_that_a_round_did_not_reach_are_the_first_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "ROUND_SECONDS", 0.3)
    monkeypatch.setattr(poller, "CONCURRENCY", 1)
    heard: list[str] = []

    async def run() -> None:
        async with slow_and_honest(silence, heard) as asking:
            await asking.run_round()
            assert heard == []
            await asking.run_round()

    asyncio.run(run())
    assert heard == ["honest"]


def test_no_error_ends_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "POLL_SECONDS", 0.01)
    rounds = 0

    def pods() -> list[StagePod]:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise UnicodeError("an error of a round")
        return [pod("evil", "127.0.0.1")]

    def report(item: StagePod, progress: Progress) -> None:
        raise RuntimeError("an error of a pod")

    async def run() -> bool:
        async with pod_server(OK + BODY) as port:
            task = asyncio.create_task(Poller(pods, report, port).run_forever())
            while rounds < 4:
                await asyncio.sleep(0.01)
            alive = not task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return alive

    assert asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize("ip", ["10.0.0.1", "240.1.2.3", "100.64.3.4", "fd00:10:244::5", "2001:db8::5"])
def test_addresses_that_pods_have_are_polled(ip: str) -> None:
    assert check_address(ip) == ip
