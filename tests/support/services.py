"""Scripted language-model services on loopback, each with the deviations of a real one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from werkzeug import Request, Response

FIELDS = {
    "framing": "close-up at eye level",
    "pose": "",
    "clothing": "",
    "setting": "on a green lawn",
    "lighting": "soft daylight",
    "other": "",
}


def json_response(body: Any, status: int = 200, **headers: str) -> Response:
    return Response(
        json.dumps(body),
        status=status,
        content_type="application/json",
        headers={"retry-after-ms": "10"} | headers,
    )


def completion(content: Any = None, **replaced: Any) -> dict[str, Any]:
    """Return a chat completion; `message` adds to the message, other arguments replace parts of the body."""
    if content is None:
        content = json.dumps(FIELDS)
    message = {"role": "assistant", "content": content} | replaced.pop("message", {})
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": replaced.pop("finish_reason", "stop")}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 80, "total_tokens": 1080},
    } | replaced


@dataclass
class Service:
    """A service that records its requests. `answer` gets the body and the number of the request, from 1."""

    answer: Callable[[dict[str, Any], int], Response]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def handle(self, request: Request) -> Response:
        with self._lock:
            body = request.get_json()
            self.requests.append(body)
            self.headers.append(dict(request.headers))
            number = len(self.requests)
            self.running += 1
        try:
            return self.answer(body, number)
        finally:
            with self._lock:
                self.running -= 1


def openai_itself(body: dict[str, Any], _: int) -> Response:
    """Answer as OpenAI for a newer model: max_completion_tokens only, and strict schemas."""
    if "max_tokens" in body:
        message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        error = {
            "message": message,
            "type": "invalid_request_error",
            "param": "max_tokens",
            "code": "unsupported_parameter",
        }
        return json_response({"error": error}, 400)
    assert body["response_format"]["type"] == "json_schema"
    return json_response(completion(message={"refusal": None}))


def vllm(body: dict[str, Any], _: int) -> Response:
    """Answer as vLLM: reasoning before the reply, no usage details, extra keys."""
    assert "max_tokens" in body
    text = "<think>The image {shows} a lawn.</think>\n\n" + json.dumps(FIELDS)
    return json_response(
        completion(
            text, usage={"prompt_tokens": 2800, "completion_tokens": 300, "prompt_tokens_details": None}
        )
    )


def ollama(body: dict[str, Any], _: int) -> Response:
    """Answer as Ollama: no json_schema, capitalised keys with nulls in a code fence."""
    if body.get("response_format", {}).get("type") == "json_schema":
        return json_response(
            {
                "error": {
                    "message": "invalid response_format: json_schema is not supported",
                    "type": "api_error",
                }
            },
            400,
        )
    fields = {name.capitalize(): value or None for name, value in FIELDS.items()}
    return json_response(completion(f"Here you are:\n```json\n{json.dumps(fields, indent=2)}\n```"))


def litellm_before_claude(body: dict[str, Any], _: int) -> Response:
    """Answer as LiteLLM before Claude: parameters that the model refuses, content in parts, fractional usage."""
    if "response_format" in body:
        message = "litellm.UnsupportedParamsError: anthropic does not support parameters: ['response_format'], for model=claude"
        return json_response(
            {"error": {"message": message, "type": "None", "param": None, "code": "400"}}, 400
        )
    parts = [{"type": "text", "text": json.dumps(FIELDS)}]
    return json_response(
        completion(parts, usage={"prompt_tokens": 1000.0, "completion_tokens": 80.0, "cost": 0.0003})
    )


def azure_with_filter(body: dict[str, Any], number: int) -> Response:
    """Answer as Azure, whose content filter refuses the second image."""
    if number == 2:
        inner = {
            "code": "ResponsibleAIPolicyViolation",
            "content_filter_result": {"violence": {"filtered": True}},
        }
        message = (
            "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
        )
        error = {
            "message": message,
            "type": None,
            "param": "prompt",
            "code": "content_filter",
            "status": 400,
            "innererror": inner,
        }
        return json_response({"error": error}, 400)
    return json_response(completion(prompt_filter_results=[{"prompt_index": 0}]))


def gateway(body: dict[str, Any], _: int) -> Response:
    """Answer plainly, for a server with a private certificate authority."""
    return json_response(completion())


class Slow:
    """A service that handles one request at a time, so that the others time out."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._one = threading.Lock()

    def __call__(self, body: dict[str, Any], _: int) -> Response:
        with self._one:
            time.sleep(self.seconds)
        return json_response(completion())


def reasoning(body: dict[str, Any], _: int) -> Response:
    """Answer after 3,000 tokens of reasoning."""
    limit = body.get("max_tokens") or body.get("max_completion_tokens")
    usage = {
        "prompt_tokens": 900,
        "completion_tokens": min(limit, 3100),
        "completion_tokens_details": {"reasoning_tokens": min(limit, 3000)},
    }
    if limit < 3100:
        return json_response(completion("", finish_reason="length", usage=usage))
    return json_response(completion(usage=usage))
