"""Reading of error bodies in the forms of many services and gateways."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lora_api.json_bounds import JsonBoundsError, load_json

BODY_CHARACTERS = 200
"""Number of characters that are quoted from a body without a message."""
MESSAGE_CHARACTERS = 600
CODES_CHARACTERS = 2000
"""Number of characters of a message and of all codes that are kept. The patterns of `errors` search both."""


WEB_PAGE = re.compile(r"\s*(?:<(?:!doctype|!--|html|head|body|\?xml)|error code: 1\d{3}\s*$)", re.IGNORECASE)
HIDDEN = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>|<[^>]*>", re.IGNORECASE | re.DOTALL)
"""Comments, scripts, styles and tags of a web page."""
PAGE_CHARACTERS = 8000
"""Number of characters of a web page in which its words are searched."""


MESSAGE_KEYS = ("message", "msg", "error_msg", "status_msg", "errorMessage", "faultstring")
STATUS_KEYS = ("code", "status", "error_code", "status_code", "statusCode")
"""Keys of error bodies for their message and their number, in the words of several services."""
SUCCESS = (None, 0, "0", 200, "200")
"""Values of these numbers that stand for no error."""


@dataclass(frozen=True)
class ServiceError:
    """The content of an error body."""

    message: str
    codes: str
    """Machine-readable codes and types, in one string."""
    status: int | None = None
    """The status in the body, which gateways send with HTTP 200; None: there is none."""
    web_page: bool = False
    """Whether the body was a web page: it comes from a proxy or a firewall rather than from the service."""

    @property
    def text(self) -> str:
        """The message and the codes."""
        return f"{self.message} {self.codes}"


def read_error(body: str) -> ServiceError:
    """Read the message and the codes from an error body of any form."""
    try:
        data = load_json(body.encode(errors="replace"))
    except JsonBoundsError:
        return ServiceError(quote(body), "", web_page=bool(WEB_PAGE.match(body)))
    error = _error_object(data)
    if isinstance(error, str):
        return ServiceError(quote(error), "")
    if not isinstance(error, dict):
        return ServiceError(quote(body), "")
    message = next(
        (text for key in (*MESSAGE_KEYS, "detail", "error") if (text := _words(error.get(key)))), ""
    )
    if isinstance(metadata := error.get("metadata"), dict) and isinstance(metadata.get("raw"), str):
        # OpenRouter: the message only says that the provider failed; its own error is in `raw`.
        message = f"{message}: {read_error(metadata['raw']).message}"
    codes = " ".join(str(value) for value in _codes(error))
    status = next((str(value) for key in STATUS_KEYS if (value := error.get(key))), "")
    number = int(status) if re.fullmatch(r"[45][0-9]{2}", status) else None
    return ServiceError(
        " ".join(message.split())[:MESSAGE_CHARACTERS] or quote(body), codes[:CODES_CHARACTERS], number
    )


def reports_error(body: dict[str, Any]) -> bool:
    """Return whether the body of a response with HTTP 200 is an error."""
    if _error_object(body) is not body or body.get("type") == "error":
        return True
    # A message and a number without a reply: {"code": 50505, "message": "Model service overloaded", "data": null}
    reply = any(body.get(key) for key in ("choices", "content", "result", "data", "response"))
    message = any(isinstance(body.get(key), str) and body[key] for key in MESSAGE_KEYS)
    return not reply and message and any(body.get(key) not in SUCCESS for key in STATUS_KEYS)


def _error_object(data: Any) -> Any:
    """Return the part of a body that describes an error, or the body itself."""
    if isinstance(data, list) and len(data) == 1:  # Gemini
        return _error_object(data[0])
    if not isinstance(data, dict):
        return data
    if data.get("error") and not _is_success(data["error"]):
        return data["error"]
    if not data.get("choices") and isinstance(data.get("errors"), list) and data["errors"]:  # Cloudflare
        return data["errors"][0]
    if isinstance(fault := data.get("fault"), dict):  # Apigee
        return fault
    if isinstance(base := data.get("base_resp"), dict) and base.get("status_code"):  # MiniMax
        return base
    choices = data.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict) and choices[0].get("error"):
        return choices[0]["error"]  # OpenRouter: the provider failed while it answered
    return data


def _is_success(error: Any) -> bool:
    """Return whether the object `error` says that there is none, as in {"code": 0, "message": "success"}."""
    if not isinstance(error, dict):
        return False
    numbers = [error[key] for key in STATUS_KEYS if error.get(key) is not None]
    return not any(error.values()) or (bool(numbers) and all(value in SUCCESS for value in numbers))


def _words(value: Any) -> str:
    """Return the message in a value of an error body; empty when it has none."""
    if isinstance(value, str):
        return value
    if isinstance(
        value, list
    ):  # FastAPI: {"detail": [{"loc": [...], "msg": ...}]}; the echoed input is not quoted
        items = [item for item in value if isinstance(item, dict)]
        return "; ".join(f"{_location(item.get('loc'))}: {item.get('msg', '')}" for item in items)
    if isinstance(value, dict):
        return next((text for key in ("message", "msg", "detail") if (text := _words(value.get(key)))), "")
    return ""


def _location(value: Any) -> str:
    """Return the path of a field in an error of FastAPI, which is a list of names and indices."""
    return ".".join(map(str, value)) if isinstance(value, list) else ""


def _codes(error: dict[str, Any]) -> Iterator[Any]:
    """Yield the codes at every depth.

    They include OpenAI's code and type, Anthropic's details.error_code and Azure's innererror.code.
    """
    for key, value in error.items():
        if isinstance(value, dict):
            yield from _codes(value)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, dict):
                    yield from _codes(item)
        elif key in (*STATUS_KEYS, "type", "param", "reason", "__type") and value:
            yield value


def quote(body: str) -> str:
    """Return the beginning of a body as one line; of a web page, its words."""
    if WEB_PAGE.match(body):
        body = html.unescape(HIDDEN.sub(" ", body[:PAGE_CHARACTERS]))
    text = " ".join(body.split())
    return text[:BODY_CHARACTERS] or "an empty body"
