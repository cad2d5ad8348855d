"""The cost of captions and its limit, which is checked before each request.

Tokenisers differ by a factor of thirty in the number of tokens of an image, so an estimate cannot guarantee the limit.
Before a service has reported its usage, requests run in parallel only if each of them could cost as much as with the
most expensive tokeniser; otherwise one request runs alone. Later requests reserve the highest cost reported so far. They
run in parallel only if the limit has room for twice that cost each. The limit is thus exceeded by the cost of one image
at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal

from lora_api.base import Lenient
from lora_api.profile import Price
from lora_api.reasons import Reason
from lora_api.status import Usage

from ..errors import BadSetupError
from .providers.protocol import TokenUsage

MILLION = 1_000_000
ZERO = Decimal(0)
DEFAULT_LIMIT = Decimal(1)
"""The limit in USD if the job names none and the profile has a price."""

WORST_INPUT_TOKENS = 100_000
"""Upper bound of the tokens of an image of 768 pixels. The highest known number is 26,000, of gpt-4o-mini."""


class Spend(Lenient):
    """The spend of one job, as kept in the store between attempts."""

    usage: Usage = Usage()
    in_flight_usd: Decimal | None = None
    """USD reserved for requests in flight. They are charged if the pod ends before their replies arrive."""


class Reservation:
    """The amount reserved for one request. `charge` replaces it by the cost."""

    def __init__(self, amount: Decimal) -> None:
        """
        Args:
            amount: USD.
        """
        self.amount = amount
        self.charged = False
        self.usage: TokenUsage | None = None

    def charge(self, usage: TokenUsage | None) -> None:
        """Record that the request is to be paid for.

        Args:
            usage: the reported tokens. None: unknown, and the reserved amount is charged.
        """
        self.charged = True
        self.usage = usage


class Budget:
    """The spend of one job. All methods must run in the same event loop."""

    def __init__(
        self,
        price: Price | None,
        limit: Decimal | None,
        save: Callable[[Spend], Awaitable[None]] | None = None,
        spent: Spend | None = None,
    ) -> None:
        """
        Args:
            price: the profile's prices of tokens. None: costs are unknown and not limited.
            limit: USD. None: DEFAULT_LIMIT if there is a price.
            save: stores the spend. It is called before a request is sent and after it is charged.
            spent: the spend that earlier runs of the stage stored.

        Raises:
            BadSetupError: for a limit without a price, which cannot be enforced.
        """
        if price is None and limit is not None:
            raise BadSetupError(
                "annotation.limits.maxCostUSD is set, but the profile has no price for the model: "
                "add llm.prices to the profile or remove the limit"
            )
        self._price = price
        self._limit = DEFAULT_LIMIT if limit is None else limit
        self._save = save
        self._changed = asyncio.Condition()
        self._saving = asyncio.Lock()
        self._running: list[Reservation] = []
        # The highest cost of a request so far, in USD; None before the first reported usage.
        self._highest_cost: Decimal | None = None
        self.usage = spent.usage if spent else Usage()
        if price is not None:
            lost = spent.in_flight_usd if spent else None
            update = {"cost_usd": self.usage.cost_usd or ZERO}
            if lost or self.usage.reserved_usd:
                update["reserved_usd"] = (self.usage.reserved_usd or ZERO) + (lost or ZERO)
            self.usage = self.usage.model_copy(update=update)

    @property
    def spent(self) -> Decimal:
        """USD that count against the limit."""
        return (self.usage.cost_usd or ZERO) + (self.usage.reserved_usd or ZERO)

    @property
    def warnings(self) -> list[str]:
        """Warnings about the cost, for the dataset report."""
        if self._price is None:
            known = "the profile has no price for the model, so the cost of the captions is unknown and not limited"
            return [known] if self.usage.requests else []
        warnings = []
        if self.spent > self._limit:
            warnings.append(f"captions cost {self.spent:.6f} USD, more than the limit of {self._limit:f}")
        if self.usage.reserved_usd:
            warnings.append(
                f"the service did not report the usage of every request; {self.usage.reserved_usd:.6f} USD are "
                "charged for those as an estimate"
            )
        return warnings

    def cost(self, usage: TokenUsage) -> Decimal:
        """Return the cost in USD at the profile's prices; zero without prices."""
        if self._price is None:
            return ZERO
        total = self._price.input * usage.input_tokens + self._price.output * usage.output_tokens
        return total / MILLION

    @asynccontextmanager
    async def reserve(self, estimate: TokenUsage) -> AsyncIterator[Reservation]:
        """Reserve the cost of a request while it runs. Waits while the reservations of other requests prevent it.

        Args:
            estimate: the request's tokens, estimated from the image's size and the output limit.

        Raises:
            BadSetupError: BudgetExceeded, when the request could cost more than is left.
        """
        expected_cost = max(self.cost(estimate), self._highest_cost or ZERO)
        reservation = Reservation(expected_cost)
        async with self._changed:
            while not self._fits(estimate, expected_cost):
                if not self._running:
                    raise BadSetupError(self._exceeded(expected_cost), Reason.BUDGET_EXCEEDED)
                await self._changed.wait()
                expected_cost = max(self.cost(estimate), self._highest_cost or ZERO)
            reservation.amount = expected_cost
            self._running.append(reservation)
        try:
            await self._store()
            yield reservation
        finally:
            async with self._changed:
                self._running.remove(reservation)
                if reservation.charged:
                    self._record(reservation)
                self._changed.notify_all()
            await self._store()

    def _fits(self, estimate: TokenUsage, expected_cost: Decimal) -> bool:
        """Return whether a request may be sent now.

        Args:
            expected_cost: USD that the request is expected to cost.
        """
        if self._price is None:
            return True
        if not self._running:
            return self.spent + expected_cost <= self._limit
        if self._highest_cost is None:
            worst = estimate.model_copy(
                update={"input_tokens": max(estimate.input_tokens, WORST_INPUT_TOKENS)}
            )
            each = self.cost(worst)
        else:
            each = 2 * expected_cost
        return self.spent + each * (len(self._running) + 1) <= self._limit

    def _record(self, reservation: Reservation) -> None:
        """Add a charged request to the usage, and its cost to what is known of the service."""
        tokens, priced = reservation.usage, self._price is not None
        changed: dict[str, int | Decimal] = {"requests": self.usage.requests + 1}
        if tokens is not None:
            changed["input_tokens"] = self.usage.input_tokens + tokens.input_tokens
            changed["output_tokens"] = self.usage.output_tokens + tokens.output_tokens
            if priced:
                cost = self.cost(tokens)
                self._highest_cost = max(self._highest_cost or ZERO, cost)
                changed["cost_usd"] = (self.usage.cost_usd or ZERO) + cost
        elif priced:
            changed["reserved_usd"] = (self.usage.reserved_usd or ZERO) + reservation.amount
        self.usage = self.usage.model_copy(update=changed)

    async def _store(self) -> None:
        if self._save is None:
            return
        async with self._saving:
            in_flight = sum((item.amount for item in self._running), ZERO)
            await self._save(Spend(usage=self.usage, in_flight_usd=in_flight if self._price else None))

    def _exceeded(self, cost: Decimal) -> str:
        return (
            f"annotation.limits.maxCostUSD={self._limit:f}: {self.spent:.6f} USD are spent and the next caption "
            f"may cost {cost:.6f}; create the job again with a higher limit (captions that are paid for are reused)"
        )
