"""Claude, through the official SDK."""

from __future__ import annotations

import asyncio
import base64

import anthropic
from anthropic.types import Message

from lora_api.reasons import Reason

from ...errors import BadSetupError, RefusedCredentialsError, StepError, UnavailableError
from . import CALL_SECONDS, CALL_SECONDS_IN_ALL, Question, Reply

SPEND_LIMITS = {
    "contract_spend_limit_reached",
    "enforced_spend_limit_reached",
    "linked_organization_spend_limit_reached",
}
"""429s that no waiting ends, by their `error.details.error_code`."""

PROBLEMS = {
    "refusal": "the model refused",
    "max_tokens": "the reply was cut off",
    "model_context_window_exceeded": "the reply was cut off",
}
"""Stop reasons that leave no whole reply."""


class AnthropicProvider:
    def __init__(self, *, model: str, api_key: str, base_url: str = "") -> None:
        self._model = model
        self._client = anthropic.AsyncAnthropic(
            api_key=api_key, base_url=base_url or None, timeout=CALL_SECONDS
        )

    async def ask(self, question: Question) -> Reply:
        try:
            async with asyncio.timeout(CALL_SECONDS_IN_ALL):
                message = await self._create(question)
        except TimeoutError as error:
            raise UnavailableError(
                f"the LLM gave no answer within {CALL_SECONDS_IN_ALL:.0f} s", Reason.LLM_UNAVAILABLE
            ) from error
        except anthropic.APIError as error:
            raise explain(error, self._model) from error
        except ValueError:  # a body that is no JSON
            return Reply("", problem="the reply is not of the Messages API")
        return _read(message)

    async def close(self) -> None:
        await self._client.close()

    async def _create(self, question: Question) -> Message:
        # No prefill and no forced tool: current models refuse both. The schema does their work.
        return await self._client.messages.create(
            model=self._model,
            max_tokens=question.max_output_tokens,
            system=question.system,
            output_config={"format": {"type": "json_schema", "schema": question.schema}, "effort": "low"},
            messages=[
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image",
                            "source": {
                                "type": "base64",
                                "media_type": "image/jpeg",
                                "data": base64.b64encode(question.jpeg).decode(),
                            },
                            "transformations": {"oversized_image": "error"},
                        },
                        {"type": "text", "text": question.text},
                    ],
                }
            ],
        )


def _read(message: Message) -> Reply:
    """The SDK builds its models without validating, so that a wrong body shows only where it is read."""
    try:
        usage = message.usage
        return Reply(
            text="".join(block.text for block in message.content if block.type == "text"),
            problem=PROBLEMS.get(message.stop_reason or "", ""),
            input_tokens=usage.input_tokens
            + (usage.cache_creation_input_tokens or 0)
            + (usage.cache_read_input_tokens or 0),
            output_tokens=usage.output_tokens,
        )
    except (AttributeError, TypeError):
        return Reply("", problem="the reply is not of the Messages API")


def explain(error: anthropic.APIError, model: str) -> StepError:
    """The step's error for one of the SDK's, in plain words; the key never appears in it."""
    if not isinstance(error, anthropic.APIStatusError):
        return UnavailableError(f"the LLM cannot be reached: {error.message}", Reason.LLM_UNAVAILABLE)
    said = error.api_message or f"HTTP {error.status_code}"
    if error.status_code in (401, 403):
        return RefusedCredentialsError(
            f"the LLM refused the profile's key (HTTP {error.status_code}): {said}"
        )
    if error.status_code == 402 or error.error_code in SPEND_LIMITS:
        return BadSetupError(f"the LLM account has no credit left: {said}", Reason.BUDGET_EXCEEDED)
    if error.status_code == 404:
        return BadSetupError(f"the LLM service has no model {model!r}: {said}", Reason.MODEL_NOT_ALLOWED)
    if error.status_code in (408, 409, 429) or error.status_code >= 500:
        return UnavailableError(
            f"the LLM is not available (HTTP {error.status_code}): {said}", Reason.LLM_UNAVAILABLE
        )
    return BadSetupError(f"the LLM refused the request (HTTP {error.status_code}): {said}")
