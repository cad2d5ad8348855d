from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from lora_api.profile import Price
from lora_api.reasons import Reason
from lora_api.status import Usage
from lora_trainer.annotate.ledger import Ledger, add_usage
from lora_trainer.errors import BadSetupError

PRICE = Price(input=Decimal(1), output=Decimal(10))
CALL = Usage(requests=1, input_tokens=1_000_000, output_tokens=100_000)  # 2 USD
MOST = Usage(requests=1, input_tokens=1_000_000, output_tokens=400_000)  # 5 USD


def test_cost_is_exact():
    ledger = Ledger(PRICE, Decimal(100))
    ledger.add(ledger.priced(CALL))
    ledger.add(ledger.priced(CALL))
    assert ledger.usage == Usage(
        requests=2, input_tokens=2_000_000, output_tokens=200_000, cost_usd=Decimal(4)
    )


def test_an_unknown_price_stays_unknown_and_is_no_limit():
    ledger = Ledger(None, Decimal(0))

    async def spend():
        async with ledger.reserve(MOST):
            ledger.add(ledger.priced(CALL))

    asyncio.run(spend())
    assert ledger.usage.cost_usd is None
    assert ledger.usage.requests == 1
    assert add_usage(Usage(cost_usd=Decimal(1)), Usage()).cost_usd is None


@pytest.mark.parametrize(("limit", "calls"), [("4.99", 0), ("5", 1), ("6.99", 1), ("7", 2), ("1000", 9)])
def test_calls_in_flight_never_pass_the_limit_and_do_not_stop_it_early(limit, calls):
    """Nine calls at once, each of at most 5 USD and really of 2."""
    ledger = Ledger(PRICE, Decimal(limit))
    done = []

    async def call():
        async with ledger.reserve(MOST):
            await asyncio.sleep(0.001)
            ledger.add(ledger.priced(CALL))
            done.append(1)

    async def spend():
        return await asyncio.gather(*(call() for _ in range(9)), return_exceptions=True)

    errors = [error for error in asyncio.run(spend()) if error]
    assert len(done) == calls
    assert ledger.usage.cost_usd == 2 * calls <= Decimal(limit)
    assert all(isinstance(error, BadSetupError) for error in errors)
    assert all(error.reason is Reason.BUDGET_EXCEEDED for error in errors)
    assert len(errors) == 9 - calls
