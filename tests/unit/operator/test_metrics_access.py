"""Requests for metrics cost the API server little, whoever sends how many."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lora_operator.api import Kind, Object
from lora_operator.metrics_access import CACHE_ENTRIES, MAX_TOKEN_BYTES, MAX_WAITING, MetricsAccess
from lora_operator.process import _serve_probes
from lora_operator.settings import Images, Settings
from tests.support.ports import free_port


class Reviewer:
    """An API server that accepts the token `good`, and counts reviews."""

    def __init__(self) -> None:
        self.reviews = 0
        self.at_once = 0
        self.most_at_once = 0

    async def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        self.reviews += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.01)
        self.at_once -= 1
        if kind.plural == "tokenreviews":
            return {"status": {"authenticated": body["spec"]["token"] == "good", "user": {"username": "a"}}}
        return {"status": {"allowed": body["spec"]["user"] == "a"}}


def access() -> tuple[MetricsAccess, Reviewer]:
    reviewer: Any = Reviewer()
    return MetricsAccess(reviewer), reviewer


def test_a_token_is_reviewed_once_a_minute() -> None:
    found, reviewer = access()

    async def run() -> list[int]:
        return [await found.check("Bearer good") for _ in range(5)] + await asyncio.gather(
            *(found.check("Bearer bad") for _ in range(5))
        )

    assert asyncio.run(run()) == [200] * 5 + [401] * 5
    assert reviewer.reviews <= 4, "two for the good token, and at most two at the same time for the bad one"


def test_a_flood_of_tokens_reaches_the_api_server_in_part() -> None:
    found, reviewer = access()

    async def run() -> list[int]:
        return await asyncio.gather(*(found.check(f"Bearer bad-{i}") for i in range(500)))

    statuses = asyncio.run(run())
    assert statuses.count(401) == reviewer.reviews == MAX_WAITING
    assert statuses.count(503) == 500 - MAX_WAITING
    assert reviewer.most_at_once <= 2


def test_what_is_remembered_is_bounded() -> None:
    found, _ = access()

    async def run() -> None:
        for start in range(0, CACHE_ENTRIES * 2, MAX_WAITING):
            await asyncio.gather(*(found.check(f"Bearer {start + i}") for i in range(MAX_WAITING)))

    asyncio.run(run())
    assert len(found._cache) == CACHE_ENTRIES


def test_what_is_no_token_is_not_reviewed() -> None:
    found, reviewer = access()
    for header in (
        "",
        "Bearer",
        "Bearer  ",
        "Basic good",
        "Bearer " + "x" * (MAX_TOKEN_BYTES + 1),
        "Bearer é",
    ):
        assert asyncio.run(found.check(header)) == 401
    assert reviewer.reviews == 0


class Handlers:
    """An operator that is healthy."""

    def liveness_error(self) -> str:
        return ""

    def readiness_error(self) -> str:
        return ""

    def update_gauges(self) -> None: ...


@pytest.mark.parametrize("reviewed", [True, False])
def test_the_operator_serves_metrics_to_accepted_tokens_and_probes_to_everybody(reviewed: bool) -> None:
    found, _ = access()
    port = free_port()
    settings = Settings(Images("a", "t"), Path("profiles"), host="127.0.0.1", port=port)
    handlers: Any = Handlers()

    async def ask(session: aiohttp.ClientSession, path: str, *tokens: str) -> tuple[int, str, str]:
        headers = [("Authorization", f"Bearer {token}") for token in tokens]
        async with session.get(f"http://127.0.0.1:{port}{path}", headers=headers) as answer:
            return answer.status, answer.headers.get("WWW-Authenticate", ""), await answer.text()

    async def run() -> None:
        async with (
            _serve_probes(handlers, settings, found if reviewed else None),
            aiohttp.ClientSession() as session,
        ):
            for path in ("/healthz", "/readyz"):
                assert (await ask(session, path))[0] == 200
            status, challenge, text = await ask(session, "/metrics")
            assert (status, challenge) == ((401, "Bearer") if reviewed else (200, ""))
            assert ("lora_operator_" in text) != reviewed
            if reviewed:
                assert (await ask(session, "/metrics", "bad"))[0] == 401
                status, _, text = await ask(session, "/metrics", "good")
                assert status == 200
                assert "lora_operator_queue_depth" in text
                # the first of two headers counts
                assert (await ask(session, "/metrics", "bad", "good"))[0] == 401

    asyncio.run(run())
