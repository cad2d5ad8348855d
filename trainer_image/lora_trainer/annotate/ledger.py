"""What captions cost, and the limit that is looked at before each call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal

from lora_api.profile import Price
from lora_api.reasons import Reason
from lora_api.status import Usage

from ..errors import BadSetupError

MILLION = 1_000_000
ZERO = Decimal(0)


def add_usage(first: Usage, second: Usage) -> Usage:
    """The sum; its cost is unknown when one of them is."""
    known = first.cost_usd is not None and second.cost_usd is not None
    return Usage(
        requests=first.requests + second.requests,
        input_tokens=first.input_tokens + second.input_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
        cost_usd=(first.cost_usd or ZERO) + (second.cost_usd or ZERO) if known else None,
    )


class Ledger:
    """What one job has spent, and whether it may spend more. For one event loop.

    Without a price nothing is known of the cost, and there is no limit.
    """

    def __init__(self, price: Price | None, limit: Decimal) -> None:
        self._price = price
        self._limit = limit
        self._reserved = ZERO
        self._settled = asyncio.Condition()
        self.usage = self.priced(Usage())

    def priced(self, usage: Usage) -> Usage:
        """The same usage with its cost in USD at the profile's prices."""
        if self._price is None:
            return usage
        cost = self._price.input * usage.input_tokens + self._price.output * usage.output_tokens
        return usage.model_copy(update={"cost_usd": cost / MILLION})

    def add(self, usage: Usage) -> None:
        self.usage = add_usage(self.usage, usage)

    @asynccontextmanager
    async def reserve(self, most: Usage) -> AsyncIterator[None]:
        """Set aside what a call can cost at most, for as long as it runs.

        Where only the calls in flight stand in the way, it waits for what they really cost.

        Raises:
            BadSetupError: BudgetExceeded, when the call could cost more than is left.
        """
        worst = self.priced(most).cost_usd or ZERO
        async with self._settled:
            while (self.usage.cost_usd or ZERO) + self._reserved + worst > self._limit:
                if not self._reserved:
                    raise BadSetupError(self._exceeded(worst), Reason.BUDGET_EXCEEDED)
                await self._settled.wait()
            self._reserved += worst
        try:
            yield
        finally:
            async with self._settled:
                self._reserved -= worst
                self._settled.notify_all()

    def _exceeded(self, worst: Decimal) -> str:
        return (
            f"annotation.limits.maxCostUSD={self._limit:f}: {self.usage.cost_usd or ZERO:.6f} USD are spent and "
            f"the next caption may cost {worst:.6f}; make the job again with a higher limit "
            "(the captions bought so far are kept)"
        )
