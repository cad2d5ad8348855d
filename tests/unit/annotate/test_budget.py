from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from lora_api.profile import Price
from lora_api.reasons import Reason
from lora_trainer.annotate.budget import Budget, Spend
from lora_trainer.annotate.providers.protocol import TokenUsage
from lora_trainer.errors import BadSetupError

PRICE = Price(input=Decimal(1), output=Decimal(10))
CALL = TokenUsage(input_tokens=1_000_000, output_tokens=100_000)  # 2 USD
ESTIMATE = TokenUsage(input_tokens=1_000_000, output_tokens=400_000)  # 5 USD


async def request(budget: Budget, usage: TokenUsage | None, estimate: TokenUsage = ESTIMATE) -> None:
    async with budget.reserve(estimate) as reservation:
        await asyncio.sleep(0.001)
        reservation.charge(usage)


def run(
    budget: Budget, usages: list[TokenUsage | None], estimate: TokenUsage = ESTIMATE
) -> list[BaseException]:
    async def spend() -> list[BaseException | None]:
        return await asyncio.gather(
            *(request(budget, usage, estimate) for usage in usages), return_exceptions=True
        )

    return [error for error in asyncio.run(spend()) if error]


def test_cost_is_exact():
    budget = Budget(PRICE, Decimal(100))
    assert run(budget, [CALL, CALL]) == []
    assert budget.usage.requests == 2
    assert (budget.usage.input_tokens, budget.usage.output_tokens) == (2_000_000, 200_000)
    assert (budget.usage.cost_usd, budget.usage.reserved_usd) == (Decimal(4), None)


def test_without_a_price_a_limit_is_refused_and_the_cost_is_unknown():
    with pytest.raises(BadSetupError, match="no price"):
        Budget(None, Decimal(1))
    budget = Budget(None, None)
    assert run(budget, [CALL]) == []
    assert budget.usage.cost_usd is None
    assert budget.usage.requests == 1
    assert "unknown" in budget.warnings[0]


def test_the_default_limit_is_one_dollar():
    budget = Budget(PRICE, None)
    assert all(error.reason is Reason.BUDGET_EXCEEDED for error in run(budget, [CALL]))


@pytest.mark.parametrize(("limit", "calls"), [("4.99", 0), ("5", 1), ("6.99", 1), ("7", 2), ("1000", 9)])
def test_requests_in_flight_never_pass_the_limit_and_do_not_stop_it_early(limit, calls):
    """Nine at once, each of 5 USD by the estimate and of 2 by its usage."""
    budget = Budget(PRICE, Decimal(limit))
    errors = run(budget, [CALL] * 9)
    assert budget.usage.requests == calls
    assert budget.spent == 2 * calls <= Decimal(limit)
    assert all(isinstance(error, BadSetupError) for error in errors)
    assert all(error.reason is Reason.BUDGET_EXCEEDED for error in errors)
    assert len(errors) == 9 - calls


@pytest.mark.parametrize("concurrency", [1, 4, 16, 64])
@pytest.mark.parametrize("tokens", [300, 2_600, 26_000, 99_000])
@pytest.mark.parametrize("limit", ["0.0005", "0.006", "0.01", "0.1"])
def test_the_limit_holds_within_one_images_cost_for_any_tokeniser_and_concurrency(concurrency, tokens, limit):
    price = Price(input=Decimal("0.15"), output=Decimal("0.60"))
    small = TokenUsage(input_tokens=1500, output_tokens=1024)
    budget = Budget(price, Decimal(limit))
    usages = [TokenUsage(input_tokens=tokens + n % 7 * tokens // 20, output_tokens=90) for n in range(60)]
    most = max(budget.cost(usage) for usage in usages)

    async def spend() -> None:
        gate = asyncio.Semaphore(concurrency)

        async def one(usage: TokenUsage) -> None:
            async with gate:
                await request(budget, usage, small)

        await asyncio.gather(*(one(usage) for usage in usages), return_exceptions=True)

    asyncio.run(spend())
    assert budget.spent <= Decimal(limit) + most
    if budget.spent > Decimal(limit):
        assert any("more than the limit" in warning for warning in budget.warnings)


def test_unknown_usage_is_charged_at_the_reservation():
    budget = Budget(PRICE, Decimal(11))
    errors = run(budget, [None] * 4)
    assert (budget.usage.cost_usd, budget.usage.reserved_usd) == (Decimal(0), Decimal(10))
    assert len(errors) == 2
    assert "did not report" in budget.warnings[0]


def test_what_was_spent_and_in_flight_before_a_restart_counts():
    saved: list[Spend] = []

    async def save(spend: Spend) -> None:
        saved.append(spend)

    first = Budget(PRICE, Decimal(100), save)
    run(first, [CALL, None])
    assert saved[0].in_flight_usd == 5
    assert saved[-1].in_flight_usd == 0
    killed = saved[-1].model_copy(update={"in_flight_usd": Decimal(5)})
    again = Budget(PRICE, Decimal(100), spent=Spend.model_validate(killed.to_wire()))
    assert again.usage.requests == 2
    assert (again.usage.cost_usd, again.usage.reserved_usd) == (Decimal(2), Decimal(10))
    assert again.spent == first.spent + 5


def test_a_failed_request_is_stored_before_the_next_one():
    saved: list[Spend] = []

    async def save(spend: Spend) -> None:
        saved.append(spend)

    async def fail(budget: Budget) -> None:
        async with budget.reserve(ESTIMATE) as reservation:
            reservation.charge(CALL)
            raise ValueError("declined")

    budget = Budget(PRICE, Decimal(100), save)
    with pytest.raises(ValueError, match="declined"):
        asyncio.run(fail(budget))
    assert saved[-1].usage.cost_usd == 2
    assert saved[-1].in_flight_usd == 0
