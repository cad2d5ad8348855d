"""The provider for Claude and for gateways with Anthropic's Messages API."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

import anthropic
import httpx2
from pydantic import BaseModel, BeforeValidator, ValidationError

from lora_api.stages import LLMAccess

from .bodies import TokenCount, is_cut_off, is_failed, is_filtered, join_text, none_if_invalid
from .client import ServiceClient, read_api_key, sdk_options
from .protocol import ImageRefusedError, Question, Reply, TokenUsage, TransientError
from .shape import Option, RequestShape, prompt_for

SCHEMA = re.compile(
    r"output_config(?!\.effort)|output_format|json_schema|schema|structured output", re.IGNORECASE
)
EFFORT = re.compile(r"\beffort\b|output_config(?!\.(?:format|effort))", re.IGNORECASE)
TRANSFORMATIONS = re.compile(r"transformations|oversized_image", re.IGNORECASE)


class Usage(BaseModel):
    input_tokens: TokenCount = None
    output_tokens: TokenCount = None
    cache_creation_input_tokens: TokenCount = None
    cache_read_input_tokens: TokenCount = None

    def tokens(self) -> TokenUsage | None:
        """Return the usage; None unless both counts are reported, since the cost would be too low otherwise.

        A request always has input, so that a count of zero means that the service does not count.
        """
        if self.input_tokens is None or self.output_tokens is None:
            return None
        cached = (self.cache_creation_input_tokens or 0) + (self.cache_read_input_tokens or 0)
        read = self.input_tokens + cached
        return TokenUsage(input_tokens=read, output_tokens=self.output_tokens) if read else None


def _text(value: Any) -> str:
    """Return the text blocks of a message, without thinking blocks; without text, the input of a tool's call."""
    if isinstance(value, list):
        calls = [
            part.get("input") for part in value if isinstance(part, dict) and part.get("type") == "tool_use"
        ]
        value = [part for part in value if not isinstance(part, dict) or part.get("type", "text") == "text"]
        if not value and calls and isinstance(calls[0], dict):
            return json.dumps(calls[0])
    return join_text(value)


class Message(BaseModel):
    """The parts of a message that are used. All others are ignored."""

    content: Annotated[str, BeforeValidator(_text)]
    stop_reason: str | None = None
    usage: Annotated[Usage | None, BeforeValidator(none_if_invalid(Usage))] = None


class AnthropicProvider:
    """A provider for Anthropic's Messages API."""

    def __init__(self, access: LLMAccess) -> None:
        key = read_api_key(access)
        options = {
            "format": Option(SCHEMA, ("json_schema", "prompt")),
            "effort": Option(EFFORT, ("low", "none")),
            "transformations": Option(TRANSFORMATIONS, ("error", "none")),
        }
        self._model = access.model
        self._client = ServiceClient(anthropic, access, key, RequestShape(options), self._use_key)
        self._sdk = anthropic.AsyncAnthropic(**sdk_options(access, key))

    async def ask(self, question: Question) -> Reply:
        async def send(shape: Mapping[str, str]) -> httpx2.Response:
            body = self._body(question, shape)
            return await self._sdk.post("/v1/messages", cast_to=httpx2.Response, body=body)

        body = await self._client.post(send)
        try:
            message = Message.model_validate(body)
        except ValidationError:
            raise self._client.malformed(body) from None
        usage = message.usage.tokens() if message.usage else None
        if is_filtered(message.stop_reason):
            raise ImageRefusedError(f"the model refused: {message.content or 'no text'}", usage, billed=True)
        if is_failed(message.stop_reason):
            raise TransientError(f"the LLM broke off its reply ({message.stop_reason})", billed=True)
        return Reply(text=message.content, usage=usage, truncated=is_cut_off(message.stop_reason))

    def _use_key(self, key: str) -> None:
        self._sdk.api_key = key

    async def close(self) -> None:
        await self._sdk.close()

    def _body(self, question: Question, shape: Mapping[str, str]) -> dict[str, Any]:
        """Build a request. The schema takes the place of prefill and forced tools, which current models refuse."""
        image: dict[str, Any] = {
            "type": "image",
            "source": {
                "type": "base64",
                "media_type": "image/jpeg",
                "data": base64.b64encode(question.jpeg).decode(),
            },
        }
        if shape["transformations"] == "error":
            image["transformations"] = {"oversized_image": "error"}
        output: dict[str, Any] = {}
        text = question.text
        if shape["format"] == "json_schema":
            output["format"] = {"type": "json_schema", "schema": question.schema}
        if shape["format"] != "json_schema" or question.spell_out:
            text = f"{text}\n{prompt_for(question.schema)}"
        if shape["effort"] == "low":
            output["effort"] = "low"
        limit = self._client.shape.max_output_tokens or question.max_output_tokens
        body = {
            "model": self._model,
            "max_tokens": min(question.max_output_tokens, limit),
            "system": question.system,
            "messages": [{"role": "user", "content": [image, {"type": "text", "text": text}]}],
        }
        return body | ({"output_config": output} if output else {})
