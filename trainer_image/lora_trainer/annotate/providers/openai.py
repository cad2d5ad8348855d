"""The provider for services with OpenAI's chat completions API: OpenAI itself, vLLM, Ollama, LiteLLM, Azure."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

import httpx2
import openai
from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, ValidationError, model_validator

from lora_api.stages import LLMAccess

from .bodies import (
    TokenCount,
    is_cut_off,
    is_failed,
    is_filtered,
    join_text,
    none_if_invalid,
    text_or_none,
)
from .client import ServiceClient, read_api_key, sdk_options
from .protocol import ImageRefusedError, Question, Reply, TokenUsage, TransientError
from .shape import Option, RequestShape, prompt_for

SCHEMA = re.compile(
    r"response_format|json[_ -]?(?:mode|object|output|validat\w*|format)|generate (?:valid )?json"
    r"|schema|structured|guided|grammar|\bstrict\b",
    re.IGNORECASE,
)
LIMIT = re.compile(r"max_(?:completion_)?tokens|maximum context length", re.IGNORECASE)
SYSTEM = re.compile(
    r"system (?:role|prompt|message|instruction)|developer instruction|roles must alternate|'system'"
    r"|\broles? (?:is|are) (?:allowed|supported)|(?:unexpected|invalid|unsupported|unknown) (?:message )?role",
    re.IGNORECASE,
)


class Details(BaseModel):
    reasoning_tokens: TokenCount = None


class Usage(BaseModel):
    prompt_tokens: TokenCount = Field(None, validation_alias=AliasChoices("prompt_tokens", "input_tokens"))
    completion_tokens: TokenCount = Field(
        None, validation_alias=AliasChoices("completion_tokens", "output_tokens")
    )
    total_tokens: TokenCount = None
    completion_tokens_details: Annotated[Details | None, BeforeValidator(none_if_invalid(Details))] = None

    def tokens(self) -> TokenUsage | None:
        """Return the usage; None unless both counts are reported, since the cost would be too low otherwise.

        A request always has input, so that a count of zero means that the service does not count. Gemini and Grok leave
        the tokens of reasoning out of the output, and count them only in the total.
        """
        if not self.prompt_tokens or self.completion_tokens is None:
            return None
        details = self.completion_tokens_details
        reasoning = (details.reasoning_tokens if details else None) or 0
        written = max(self.completion_tokens, (self.total_tokens or 0) - self.prompt_tokens)
        if reasoning > written:
            written += reasoning
        return TokenUsage(input_tokens=self.prompt_tokens, output_tokens=written, reasoning_tokens=reasoning)


def _arguments(value: Any) -> str:
    """Return the arguments of the first call of a tool. Some models answer with a call in the place of text."""
    call = value[0] if isinstance(value, list) and value else value
    function = call.get("function", call) if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    return json.dumps(arguments) if isinstance(arguments, dict) else join_text(arguments)


def _refusal(value: Any) -> str:
    """Return the refusals among the parts of a message's content."""
    parts = value if isinstance(value, list) else []
    return join_text([part.get("refusal") for part in parts if isinstance(part, dict)])


class Message(BaseModel):
    content: Annotated[str, BeforeValidator(join_text)] = ""
    refusal: Annotated[str, BeforeValidator(join_text)] = ""
    reasoning_content: Annotated[str, BeforeValidator(join_text)] = ""
    """The model's reasoning. vLLM and others put the whole reply here if their reasoning parser does not suit the model."""
    reasoning: Annotated[str, BeforeValidator(join_text)] = ""
    """The same in newer versions of vLLM, and at OpenRouter."""
    parsed: Annotated[str, BeforeValidator(join_text)] = ""
    tool_calls: Annotated[str, BeforeValidator(_arguments)] = ""
    function_call: Annotated[str, BeforeValidator(_arguments)] = ""

    @model_validator(mode="before")
    @classmethod
    def _refusal_in_parts(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("refusal"):
            return {**data, "refusal": _refusal(data.get("content"))}
        return data

    @property
    def text(self) -> str:
        """The reply, wherever the service puts it."""
        answer = self.content or self.parsed or self.tool_calls or self.function_call
        return answer or self.reasoning_content or self.reasoning


def _message(value: Any) -> Any:
    """Return a message that is only its text as an object."""
    return {"content": value} if isinstance(value, str) else value


class Choice(BaseModel):
    message: Annotated[Message | None, BeforeValidator(_message)] = Field(
        None, validation_alias=AliasChoices("message", "delta")
    )
    finish_reason: Annotated[str | None, BeforeValidator(text_or_none)] = None

    @property
    def text(self) -> str:
        return self.message.text if self.message else ""


def _choices(value: Any) -> Any:
    """Return the choices as a list without empty entries."""
    value = [value] if isinstance(value, dict) else value
    return [item for item in value if item is not None] if isinstance(value, list) else value


class Completion(BaseModel):
    """The parts of a chat completion that are used. All others are ignored."""

    choices: Annotated[list[Choice] | None, BeforeValidator(_choices)]
    """Some services send none for an image that their filter declines."""
    usage: Annotated[Usage | None, BeforeValidator(none_if_invalid(Usage))] = None


class OpenAIProvider:
    """A provider for OpenAI's chat completions API."""

    def __init__(self, access: LLMAccess) -> None:
        key = read_api_key(access)
        # OpenAI's newer models accept only the first name, most other services only the second.
        names = ("max_completion_tokens", "max_tokens")
        options = {
            "format": Option(SCHEMA, ("json_schema", "json_object", "prompt")),
            "limit": Option(LIMIT, (*(names[::-1] if access.base_url else names), "none")),
            "system": Option(SYSTEM, ("own", "merged")),
        }
        self._model = access.model
        self._client = ServiceClient(openai, access, key, RequestShape(options), self._use_key)
        self._sdk = openai.AsyncOpenAI(**sdk_options(access, key))

    async def ask(self, question: Question) -> Reply:
        async def send(shape: Mapping[str, str]) -> httpx2.Response:
            body = self._body(question, shape)
            return await self._sdk.post("/chat/completions", cast_to=httpx2.Response, body=body)

        body = await self._client.post(send)
        try:
            completion = Completion.model_validate(_completion_of(body))
        except ValidationError:
            raise self._client.malformed(body) from None
        usage = completion.usage.tokens() if completion.usage else None
        if not completion.choices:
            raise ImageRefusedError(
                "the service's reply has no choices, as for a filtered image", usage, billed=True
            )
        choice = next((choice for choice in completion.choices if choice.text), completion.choices[0])
        if choice.message is None and not choice.finish_reason:
            raise self._client.malformed(body)
        return _reply(choice, usage)

    def _use_key(self, key: str) -> None:
        self._sdk.api_key = key

    async def close(self) -> None:
        await self._sdk.close()

    def _body(self, question: Question, shape: Mapping[str, str]) -> dict[str, Any]:
        url = "data:image/jpeg;base64," + base64.b64encode(question.jpeg).decode()
        text = (
            question.text
            if shape["format"] == "json_schema" and not question.spell_out
            else f"{question.text}\n{prompt_for(question.schema)}"
        )
        if shape["system"] == "merged":
            text = f"{question.system}\n\n{text}"
        user = {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}],
        }
        system = [{"role": "system", "content": question.system}] if shape["system"] == "own" else []
        body: dict[str, Any] = {"model": self._model, "messages": [*system, user]}
        if shape["format"] == "json_schema":
            schema = {"name": "caption", "schema": question.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif shape["format"] == "json_object":
            body["response_format"] = {"type": "json_object"}
        if shape["limit"] != "none":
            largest = self._client.shape.max_output_tokens or question.max_output_tokens
            body[shape["limit"]] = min(question.max_output_tokens, largest)
        return body


def _completion_of(body: dict[str, Any]) -> dict[str, Any]:
    """Return the completion in a body, which some gateways wrap in an object of their own.

    Services whose JSON is made by Protocol Buffers, such as Gemini's, leave an empty list of choices out.
    """
    if "choices" not in body and body.get("object") == "chat.completion":
        return body | {"choices": None}
    inner = [body.get(name) for name in ("result", "data", "response")]
    return next((part for part in inner if isinstance(part, dict) and "choices" in part), body)


def _reply(choice: Choice, usage: TokenUsage | None) -> Reply:
    """Convert a choice to a reply.

    Raises:
        ImageRefusedError: when the service or the model declined the image.
        TransientError: when the service failed while it answered.
    """
    message = choice.message or Message()
    if message.refusal:
        raise ImageRefusedError(f"the model refused: {message.refusal}", usage, billed=True)
    if is_filtered(choice.finish_reason):
        raise ImageRefusedError("the service's content filter ended the reply", usage, billed=True)
    if is_failed(choice.finish_reason):
        raise TransientError(f"the LLM broke off its reply ({choice.finish_reason})", billed=True)
    return Reply(
        text=message.text,
        usage=usage,
        truncated=is_cut_off(choice.finish_reason),
    )
