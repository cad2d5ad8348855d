"""A queue of keys to reconcile. Each key is queued once and processed once at a time; failures back off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

Key = TypeVar("Key")

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 60.0
"""Shortest and longest time until a key that failed is processed again."""


class WorkQueue(Generic[Key]):
    """A work queue after client-go's.

    A key that is added while it is being processed is processed once more afterwards. A key whose processing raises
    is retried after a time that doubles with every failure.
    """

    def __init__(self, work: Callable[[Key], Awaitable[None]], workers: int = 16) -> None:
        self._work = work
        self._count = workers
        self._queue: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()
        self._busy: set[Key] = set()
        self._added_while_busy: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self._count)]

    async def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._busy)

    def add(self, key: Key) -> None:
        """Process a key soon."""
        if key in self._busy:
            self._added_while_busy.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._queue.put_nowait(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Process a key after some seconds.

        If it is due earlier already, that time is kept. If it is processed before that for another reason, it is not
        processed again.
        """
        if seconds <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._fire, key)

    def _fire(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    async def _run(self) -> None:
        while True:
            key = await self._queue.get()
            self._waiting.discard(key)
            self._busy.add(key)
            if timer := self._timers.pop(key, None):
                timer.cancel()  # the key is processed now
            try:
                await self._work(key)
                self._failures.pop(key, None)
            except Exception as error:
                failures = self._failures[key] = self._failures.get(key, 0) + 1
                delay = min(FIRST_RETRY_SECONDS * 2 ** (failures - 1), LAST_RETRY_SECONDS)
                log.warning(
                    "%s/%s: %s; retrying in %.1f s", *_namespace_and_name(key), describe_error(error), delay
                )
                self.add_after(key, delay)
            finally:
                self._busy.discard(key)
                if key in self._added_while_busy:
                    self._added_while_busy.discard(key)
                    self.add(key)


def describe_error(error: Exception) -> str:
    """Describe an error in one line: an HTTP status and its reason, or the exception's name and message."""
    status, reason = getattr(error, "status", None), getattr(error, "reason", None)
    return f"{status} {reason}" if status else f"{type(error).__name__}: {error}"


def _namespace_and_name(key: object) -> tuple[object, object]:
    return (key[0], key[1]) if isinstance(key, tuple) and len(key) == 2 else ("", key)
