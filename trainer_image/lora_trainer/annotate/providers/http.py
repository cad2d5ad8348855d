"""What the HTTP providers share: how an answer that is none is understood, and when not to wait."""

from __future__ import annotations

import httpx2

from lora_api.reasons import Reason

from ...errors import BadSetupError, RefusedCredentialsError, StepError, UnavailableError

LONGEST_PAUSE_SECONDS = 60.0
"""A service that asks for a longer pause is left to the platform's retries."""

NO_CREDIT = {
    "contract_spend_limit_reached",
    "enforced_spend_limit_reached",
    "linked_organization_spend_limit_reached",
    "insufficient_quota",
    "billing_hard_limit_reached",
}
"""Error codes of 429s and 403s that no waiting ends (Anthropic's `error.details.error_code`, OpenAI's `error.code`)."""


async def stop_vain_retries(response: httpx2.Response) -> None:
    """A response hook: tells the SDK, by the header that both obey, not to retry what waiting does not mend."""
    if response.status_code < 400:
        return
    await response.aread()
    if error_code(response) in NO_CREDIT or _pause(response) > LONGEST_PAUSE_SECONDS:
        response.headers["x-should-retry"] = "false"


def error_code(response: httpx2.Response) -> str:
    """The machine-readable code in an error's body, in Anthropic's place or in OpenAI's."""
    try:
        error = response.json()["error"]
        details = error.get("details") or {}
        return str(details.get("error_code") or error.get("code") or "")
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""


def explain_status(response: httpx2.Response, said: str, model: str) -> StepError:
    """The step's error for a response of 400 and above; the key never appears in it."""
    status = response.status_code
    if status == 402 or error_code(response) in NO_CREDIT:
        return BadSetupError(f"the LLM account has no credit left: {said}", Reason.BUDGET_EXCEEDED)
    if status in (401, 403):
        return RefusedCredentialsError(f"the LLM refused the profile's key (HTTP {status}): {said}")
    if status == 404:
        return BadSetupError(f"the LLM service has no model {model!r}: {said}", Reason.MODEL_NOT_ALLOWED)
    if status in (408, 409, 429) or status >= 500:
        return UnavailableError(f"the LLM is not available (HTTP {status}): {said}", Reason.LLM_UNAVAILABLE)
    return BadSetupError(f"the LLM refused the request (HTTP {status}): {said}")


def unreachable(said: str) -> StepError:
    return UnavailableError(f"the LLM cannot be reached: {said}", Reason.LLM_UNAVAILABLE)


def no_answer(seconds: float) -> StepError:
    return UnavailableError(f"the LLM gave no answer within {seconds:.0f} s", Reason.LLM_UNAVAILABLE)


def _pause(response: httpx2.Response) -> float:
    """Seconds that the service asks to wait; 0 where it says a date or nothing."""
    try:
        return float(response.headers.get("retry-after", "0"))
    except ValueError:
        return 0.0
