"""What the receiver of a webhook may answer, and what a tenant can write into the message."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from lora_api.profile import Webhook
from lora_api.reasons import Reason
from lora_operator.webhooks import WebhookError, build_delivery, parse_secrets, post
from tests.support.builders import NOW, failed
from tests.support.raw_server import serve_raw
from tests.support.webhook_receiver import new_secret, receive

from .test_webhooks import job_that_ended

OK = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(bytes(256 << 20), 9)
MEMORY = 8 << 20
"""What an attempt may allocate, in bytes."""


def endless(start: bytes, part: bytes, pause: float = 0.0) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(part)
            time.sleep(pause)

    return answer


def once(data: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(data)


@contextmanager
def served(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Answer each connection by code; yield the URL."""
    with serve_raw(lambda connection, _: answer(connection)) as port:
        yield f"http://127.0.0.1:{port}/secret-path"


def attempt(url: str) -> str:
    """Make one attempt; return why it failed, or an empty text."""
    webhook = Webhook.model_validate({"url": url, "secretName": "hook", "timeoutSeconds": 2})
    message = build_delivery(job_that_ended(webhook), webhook, datetime.now(UTC))
    try:
        asyncio.run(post(message, parse_secrets(new_secret())))
    except WebhookError as error:
        return str(error)
    return ""


ACCEPTED = {
    "an endless body": endless(OK + b"\r\n", bytes(65536)),
    "endless chunks": endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n"),
    "a gzip bomb": once(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB),
    "an encoding that nobody knows": once(OK + b"Content-Encoding: br\r\nContent-Length: 3\r\n\r\nabc"),
    "a body that trickles": endless(OK + b"Content-Length: 1000000\r\n\r\n", b"x", 0.1),
    "cookies": once(OK + b"Set-Cookie: a=b; Domain=.\r\nSet-Cookie: \x01=\r\nContent-Length: 0\r\n\r\n"),
}
REFUSED = {
    "endless headers": endless(OK, b"x-a: " + b"a" * 1000 + b"\r\n"),
    "a header without an end": endless(OK + b"x-a: ", b"a" * 65536),
    "a status line without an end": endless(b"HTTP/1.1 200 ", b"a" * 65536),
    "headers that trickle": endless(OK, b"x: y\r\n", 0.1),
    "interim answers without an end": endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.01),
    "a switch of protocols": once(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    ),
    "no HTTP": once(bytes(range(256)) * 8),
    "nothing": once(b""),
    "a negative length": once(OK + b"Content-Length: -5\r\n\r\n"),
    "two lengths": once(OK + b"Content-Length: 1\r\nContent-Length: 9\r\n\r\n"),
    "a wide status": once(b"HTTP/1.1 99999999999999999999 OK\r\n\r\n"),
    "a status with a text": once(b"HTTP/1.1 500 \x1b[31m<img src=x>secret\r\nContent-Length: 0\r\n\r\n"),
    "a proxy's question": once(b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"),
    "a redirect to no address": once(
        b"HTTP/1.1 302 x\r\nLocation: http://a..b/\r\nContent-Length: 0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("name", [*ACCEPTED, *REFUSED])
def test_no_answer_takes_memory_or_time_or_reaches_the_status(name: str) -> None:
    attempt("http://127.0.0.1:1/")  # what the first request imports and keeps is not counted
    with served((ACCEPTED | REFUSED)[name]) as url:
        tracemalloc.start()
        started = time.monotonic()
        cause = attempt(url)
        took = time.monotonic() - started
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert bool(cause) == (name in REFUSED), cause
    assert peak < MEMORY
    assert took < 120, "the limit of one attempt is two seconds"
    assert "secret" not in cause
    assert cause.isprintable()
    assert len(cause) < 200


def test_answers_are_requested_without_compression() -> None:
    with receive() as receiver:
        attempt(receiver.url)
    [request] = receiver.received
    assert request.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "text", ["\ud800", "\u202eevil", "\x1b[2J", '"},"data":{"name":"other', "x" * 100_000]
)
def test_a_pods_last_words_stay_one_bounded_text_of_the_message(text: str) -> None:
    webhook = Webhook.model_validate({"url": "http://receiver.example/", "secretName": "hook"})
    ended = job_that_ended(webhook, outcome=failed(Reason.DATASET_INVALID, text))
    delivery = build_delivery(ended, webhook, NOW)
    data = json.loads(delivery.body.encode())["data"]
    assert (data["namespace"], data["name"]) == (ended.namespace, ended.name)
    assert len(delivery.body.encode()) < 64 << 10
    assert not any(unsafe in data["message"] for unsafe in "\ud800\u202e\x1b")


def test_a_secret_in_a_pods_last_words_is_not_announced() -> None:
    secret = new_secret()
    parse_secrets(secret)
    webhook = Webhook.model_validate({"url": "http://receiver.example/", "secretName": "hook"})
    ended = job_that_ended(webhook, outcome=failed(Reason.DATASET_INVALID, f"it was {secret}"))
    assert secret not in build_delivery(ended, webhook, NOW).body
