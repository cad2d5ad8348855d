"""Claude, through the official SDK."""

from __future__ import annotations

import asyncio
import base64

import anthropic
from anthropic.types import Message

from . import Patience, Question, Reply
from .http import explain_status, no_answer, stop_vain_retries, unreachable

PROBLEMS = {
    "refusal": "the model refused",
    "max_tokens": "the reply was cut off",
    "model_context_window_exceeded": "the reply was cut off",
}
"""Stop reasons that leave no whole reply."""

GARBAGE = Reply("", problem="the reply is not of the Messages API")


class AnthropicProvider:
    def __init__(self, *, model: str, api_key: str, base_url: str, patience: Patience) -> None:
        self._model = model
        self._patience = patience
        self._client = anthropic.AsyncAnthropic(
            api_key=api_key,
            base_url=base_url or None,
            timeout=patience.call,
            http_client=anthropic.DefaultAsyncHttpxClient(event_hooks={"response": [stop_vain_retries]}),
        )

    async def ask(self, question: Question) -> Reply:
        try:
            async with asyncio.timeout(self._patience.in_all):
                message = await self._create(question)
        except TimeoutError as error:
            raise no_answer(self._patience.in_all) from error
        except anthropic.APIStatusError as error:
            raise explain_status(
                error.response, error.api_message or "no more is said", self._model
            ) from error
        except anthropic.APIError as error:
            raise unreachable(error.message) from error
        except ValueError:  # a body that is no JSON
            return GARBAGE
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
        return GARBAGE
