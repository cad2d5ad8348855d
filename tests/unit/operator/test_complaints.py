"""One list of a namespace's warnings serves all that wait in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lora_operator import complaints
from lora_operator.api import Kind, Page
from lora_operator.complaints import Complaints

NORMAL, QUOTA, MOUNT = (
    {"reason": reason, "regarding": {"uid": uid}}
    for reason, uid in (("BackOff", "pod"), ("FailedCreate", "job"), ("FailedMount", "pod"))
)


class Events:
    def __init__(self) -> None:
        self.lists: list[tuple[str, str]] = []

    async def list_pages(self, kind: Kind, namespace: str, fields: str) -> AsyncIterator[Page]:
        self.lists.append((namespace, fields))
        await asyncio.sleep(0)
        yield [NORMAL, QUOTA], 1
        yield [MOUNT, {"reason": "FailedMount"}], 1


def test_many_that_wait_share_one_list_of_their_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    events: Any = Events()
    found = Complaints(events)

    async def ask(*whom: tuple[str, str]) -> list[Any]:
        return await asyncio.gather(*(found.about(*who) for who in whom))

    assert asyncio.run(ask(("a", "job"), ("a", "pod"), ("a", "nobody"))) == [[QUOTA], [MOUNT], []]
    assert asyncio.run(ask(("a", "job"), ("b", "job"))) == [[QUOTA], [QUOTA]]
    assert events.lists == [("a", "type=Warning"), ("b", "type=Warning")]
    later = complaints.monotonic() + complaints.LEAST_AGE_SECONDS + 1
    monkeypatch.setattr(complaints, "monotonic", lambda: later)
    asyncio.run(ask(("a", "job")))
    assert len(events.lists) == 3
