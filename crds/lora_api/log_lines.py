"""The format of log lines: no secrets, and no text that could pass for another line."""

from __future__ import annotations

import logging
import re
from typing import Any

from .fields import UNSAFE, UNSAFE_IN_TEXT
from .redact import redact


class RedactingFormatter(logging.Formatter):
    """A formatter whose lines, tracebacks included, contain no secrets.

    Messages may repeat what pods, services and files say. Line breaks and other control characters in them are escaped,
    and tracebacks are indented, so that a message cannot forge a line or change the terminal.
    """

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of logging
        record.message = re.sub(f"[{UNSAFE}]", _escape, record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return _indent(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indent(super().formatStack(stack_info))


def configure_stderr(form: str) -> None:
    """Log to stderr in a format of `logging`, from the level INFO."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter(form))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _indent(text: str) -> str:
    text = re.sub(f"[{UNSAFE_IN_TEXT}]", _escape, text)
    return "".join(f"  {line}\n" for line in text.split("\n")).rstrip("\n")


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
