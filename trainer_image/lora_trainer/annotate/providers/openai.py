"""Any service that speaks OpenAI's chat completions, through the official SDK: OpenAI itself, vLLM, Ollama."""

from __future__ import annotations

import asyncio
import base64

import openai
from openai.types.chat import ChatCompletion

from . import Patience, Question, Reply
from .http import explain_status, no_answer, stop_vain_retries, unreachable

PROBLEMS = {"content_filter": "the model refused", "length": "the reply was cut off"}
"""Finish reasons that leave no whole reply."""

GARBAGE = Reply("", problem="the reply is not a chat completion")


class OpenAIProvider:
    def __init__(self, *, model: str, api_key: str, base_url: str, patience: Patience) -> None:
        self._model = model
        self._patience = patience
        # OpenAI's newer models know only the first name, most services beside it only the second.
        self._limit = "max_tokens" if base_url else "max_completion_tokens"
        self._client = openai.AsyncOpenAI(
            api_key=api_key,
            base_url=base_url or None,
            timeout=patience.call,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [stop_vain_retries]}),
        )

    async def ask(self, question: Question) -> Reply:
        try:
            async with asyncio.timeout(self._patience.in_all):
                completion = await self._create(question)
        except TimeoutError as error:
            raise no_answer(self._patience.in_all) from error
        except openai.APIStatusError as error:
            raise explain_status(error.response, _words(error), self._model) from error
        except openai.APIError as error:
            raise unreachable(error.message) from error
        except ValueError:  # a body that is no JSON
            return GARBAGE
        return _read(completion)

    async def close(self) -> None:
        await self._client.close()

    async def _create(self, question: Question) -> ChatCompletion:
        url = "data:image/jpeg;base64," + base64.b64encode(question.jpeg).decode()
        return await self._client.chat.completions.create(
            model=self._model,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "caption", "schema": question.schema, "strict": True},
            },
            messages=[
                {"role": "system", "content": question.system},
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": url}},
                        {"type": "text", "text": question.text},
                    ],
                },
            ],
            extra_body={self._limit: question.max_output_tokens},
        )


def _words(error: openai.APIStatusError) -> str:
    body = error.body
    said = body.get("message") if isinstance(body, dict) else None
    return str(said or "no more is said")


def _read(completion: ChatCompletion) -> Reply:
    """The SDK builds its models without validating, so that a wrong body shows only where it is read."""
    try:
        choice, usage = completion.choices[0], completion.usage
        return Reply(
            text=choice.message.content or "",
            problem="the model refused" if choice.message.refusal else PROBLEMS.get(choice.finish_reason, ""),
            input_tokens=usage.prompt_tokens if usage else 0,
            output_tokens=usage.completion_tokens if usage else 0,
        )
    except (AttributeError, TypeError, IndexError):
        return GARBAGE
