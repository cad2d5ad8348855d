"""One list of a namespace's warnings serves all that wait in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lora_operator import warning_events
from lora_operator.api import Kind, Page
from lora_operator.warning_events import WarningEvents

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
    found = WarningEvents(events)

    async def ask(*whom: tuple[str, str]) -> list[Any]:
        return await asyncio.gather(*(found.about(*who) for who in whom))

    assert asyncio.run(ask(("a", "job"), ("a", "pod"), ("a", "nobody"))) == [[QUOTA], [MOUNT], []]
    assert asyncio.run(ask(("a", "job"), ("b", "job"))) == [[QUOTA], [QUOTA]]
    assert events.lists == [("a", "type=Warning"), ("b", "type=Warning")]
    later = warning_events.monotonic() + warning_events.MIN_AGE_SECONDS + 1
    monkeypatch.setattr(warning_events, "monotonic", lambda: later)
    asyncio.run(ask(("a", "job")))
    assert len(events.lists) == 3


@pytest.mark.parametrize(("whom", "most"), [("job", 10), ("nobody", 32)])
def test_lists_become_rarer_while_their_answer_stays_the_same(
    monkeypatch: pytest.MonkeyPatch, whom: str, most: int
) -> None:
    events: Any = Events()
    found = WarningEvents(events)
    clock = [1000.0]
    monkeypatch.setattr(warning_events, "monotonic", lambda: clock[0])

    async def wait(seconds: int) -> None:
        for _ in range(seconds):
            await found.about("a", whom)
            clock[0] += 1

    asyncio.run(wait(300))
    assert 3 < len(events.lists) <= most


def test_events_of_any_number_and_size_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant may write Events: only the newest ones are kept, and of each what is read."""
    monkeypatch.setattr(warning_events, "MAX_EVENTS", 50)

    class Hostile:
        async def list_pages(self, *_: Any, **__: Any) -> AsyncIterator[Page]:
            for number in range(20):
                yield (
                    [
                        {
                            "reason": "FailedMount",
                            "note": f"{number} {'x' * 10_000}",
                            "eventTime": f"2026-01-01T00:00:{number:02d}Z",
                            "metadata": {"annotations": {"x": "x" * 100_000}},
                            "regarding": {"uid": f"{uid}", "name": "x" * 10_000},
                        }
                        for uid in range(100)
                    ],
                    1,
                )

    hostile: Any = Hostile()
    found = WarningEvents(hostile)
    [event] = asyncio.run(found.about("a", "7"))
    assert event["note"].startswith("19 ")
    [kept] = [cached.events for cached in found._namespaces.values()]
    assert len(kept) == 50
    assert len(json.dumps(kept)) < 50 * 2000


def test_the_events_about_every_volume_of_a_pod_are_kept() -> None:
    def event(reason: str, note: str, minute: int) -> dict[str, Any]:
        time = f"2026-03-01T12:{minute:02d}:00Z"
        return {"reason": reason, "note": note, "eventTime": time, "regarding": {"uid": "pod"}}

    quotas = [event("FailedCreate", f"quota {minute}", minute) for minute in (1, 2)]
    mounts = [event("FailedMount", f'secret "{name}" not found', 5) for name in ("store", "llm")]
    more = [event("FailedMount", f"volume {minute}", minute) for minute in range(6, 20)]

    class Pages:
        def __init__(self, events: list[dict[str, Any]]) -> None:
            self.events = events

        async def list_pages(self, *_: Any, **__: Any) -> AsyncIterator[Page]:
            yield self.events, 1

    def notes(events: list[dict[str, Any]]) -> list[str]:
        pages: Any = Pages(events)
        return [each["note"] for each in asyncio.run(WarningEvents(pages).about("a", "pod"))]

    assert notes(quotas) == ["quota 2"]
    found = notes([mounts[0], *quotas, mounts[1]])
    assert sorted(found) == ['secret "llm" not found', 'secret "store" not found']
    assert notes([*mounts, *more]) == [f"volume {minute}" for minute in (19, 18, 17, 16)]
