"""The queue: no key twice at once, none forgotten, failures again with back-off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from lora_operator import workqueue
from lora_operator.workqueue import WorkQueue

Work = Callable[[str], Awaitable[None]]


def run(work: Work, script: Callable[[WorkQueue[str]], Awaitable[None]]) -> None:
    async def main() -> None:
        queue = WorkQueue(work, workers=4)
        queue.start()
        await asyncio.wait_for(script(queue), 10)
        await queue.stop()

    asyncio.run(main())


def test_a_key_is_never_worked_on_twice_at_once_and_its_last_event_is_never_lost() -> None:
    running, most, seen = 0, 0, []
    entered = asyncio.Event()

    async def work(key: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        entered.set()
        await asyncio.sleep(0.01)
        running -= 1
        seen.append(key)

    async def script(queue: WorkQueue[str]) -> None:
        queue.add("a")
        queue.add("a")
        await entered.wait()
        queue.add("a")
        queue.add("a")
        await asyncio.sleep(0.1)

    run(work, script)
    assert most == 1
    assert seen == ["a", "a"]


def test_different_keys_are_worked_on_together() -> None:
    met = asyncio.Barrier(3)

    async def work(_: str) -> None:
        await met.wait()

    async def script(queue: WorkQueue[str]) -> None:
        for key in "ab":
            queue.add(key)
        await met.wait()

    run(work, script)


def test_a_failure_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workqueue, "FIRST_RETRY_SECONDS", 0.01)
    tries = []
    done = asyncio.Event()

    async def work(key: str) -> None:
        tries.append(key)
        if len(tries) < 4:
            raise RuntimeError("not yet")
        done.set()

    async def script(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await done.wait()

    run(work, script)
    assert tries == ["a"] * 4


def test_the_earliest_requested_time_is_kept() -> None:
    seen = []

    async def work(key: str) -> None:
        seen.append(key)

    async def script(queue: WorkQueue[str]) -> None:
        queue.add_after("a", 0.02)
        queue.add_after("a", 100)
        await asyncio.sleep(0.2)

    run(work, script)
    assert seen == ["a"]


def test_what_is_processed_earlier_is_not_processed_again() -> None:
    seen = []

    async def work(key: str) -> None:
        seen.append(key)

    async def script(queue: WorkQueue[str]) -> None:
        queue.add_after("a", 0.1)
        queue.add("a")
        await asyncio.sleep(0.3)

    run(work, script)
    assert seen == ["a"]
