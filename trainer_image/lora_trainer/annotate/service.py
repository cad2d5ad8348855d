"""The pace of requests to a service: the number of parallel requests, and the pauses between retries."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .providers.protocol import TransientError

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0


class Slots:
    """A limit on the number of requests that run at once. A timeout halves it.

    Each halving begins a new generation, see `lower`.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._running = 0
        self._generation = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def take(self) -> AsyncIterator[int]:
        """Wait for a slot and hold it for one request. Yields the generation, which `lower` takes."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._running < self.limit)
            self._running += 1
        try:
            yield self._generation
        finally:
            async with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def lower(self, generation: int) -> None:
        """Halve the limit after a timeout, at most once per generation.

        With a service that works on one request at a time, all requests in flight time out together. Only the
        first of them lowers the limit.

        Args:
            generation: the generation that `take` yielded for the request that timed out.
        """
        if generation == self._generation:
            self._generation += 1
            self.limit = max(1, self.limit // 2)


class Outage:
    """The current outage of a service, over all requests of a run: its length, and the pause before a retry."""

    def __init__(self, retry_seconds: float) -> None:
        """
        Args:
            retry_seconds: seconds of an outage after which requests are not repeated.
        """
        # `_since` is the time of the first failure. `_counted` is the time until which further failures belong to
        # the same wave and do not lengthen the pause. `_longest` is the longest pause of the current wave, in seconds.
        self._retry_seconds = retry_seconds
        self._since: float | None = None
        self._failures = 0
        self._counted = 0.0
        self._longest = FIRST_PAUSE_SECONDS

    def end(self) -> None:
        """End the outage, after the service has answered."""
        self._since = None
        self._failures = 0

    def pause(self, error: TransientError) -> float:
        """Return the seconds to wait before the request is repeated.

        Raises:
            TransientError: when the service has been failing for too long, or asks for a longer pause than is left.
        """
        now = time.monotonic()
        if self._since is None:
            self._since, self._counted = now, float("-inf")
        # Requests in parallel fail together: only one of them makes the next pause longer.
        if now >= self._counted:
            self._failures += 1
            self._longest = min(
                FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures - 1, 16), LONGEST_PAUSE_SECONDS
            )
            self._counted = now + self._longest
        failing, left = now - self._since, self._retry_seconds - (now - self._since)
        if left > 0 and error.pause is not None and error.pause > left:
            raise TransientError(
                f"{error}; it asks to wait {error.pause:.0f} s, and {left:.0f} s of llm.retrySeconds are left"
            ) from error
        if left <= 0:
            raise TransientError(
                f"{error}; tried for {failing:.0f} s (llm.retrySeconds in the profile)"
            ) from error
        if error.pause is not None:
            return error.pause
        # A random pause keeps requests that failed together from being repeated together. It is cut to the time that
        # is left, so that the last try is made at the end of it.
        return min(self._longest * random.uniform(0.5, 1.0), left)  # noqa: S311
