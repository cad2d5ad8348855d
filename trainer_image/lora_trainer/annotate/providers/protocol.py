"""The interface of a language model that describes images.

A provider sends one request and returns the validated reply. The captioner decides for all providers whether a reply is
good enough, what it costs, and whether a request is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from lora_api.reasons import Reason

from ...errors import BadSetupError, UnavailableError


@dataclass(frozen=True)
class Question:
    """A question about one image."""

    system: str
    """The system prompt."""
    text: str
    jpeg: bytes
    """The image."""
    schema: dict[str, Any]
    """The JSON schema of the reply."""
    max_output_tokens: int
    spell_out: bool = False
    """Whether to describe the schema in the text as well, for services that ignore the requested one."""


class TokenUsage(BaseModel):
    """Tokens of one request, as the service reported them."""

    model_config = ConfigDict(frozen=True)

    input_tokens: NonNegativeInt
    """Tokens that were read, including cached ones."""
    output_tokens: NonNegativeInt
    """Tokens that were written, including those for reasoning."""
    reasoning_tokens: NonNegativeInt = 0
    """The part of `output_tokens` that was used for reasoning."""


class Reply(BaseModel):
    """A model's reply to one question."""

    model_config = ConfigDict(frozen=True)

    text: str
    usage: TokenUsage | None = None
    """The reported tokens. None: the service did not report them; the request may still have a cost."""
    truncated: bool = False
    """Whether the reply was cut off at the output limit."""


class ImageRefusedError(Exception):
    """The service or its model declined this image. The message quotes the service."""

    def __init__(self, message: str, usage: TokenUsage | None = None, billed: bool = False) -> None:
        """
        Args:
            usage: the reported tokens; None: unknown.
            billed: whether the request may have a cost. Error responses have none.
        """
        super().__init__(message)
        self.usage = usage
        self.billed = billed


class MalformedReplyError(BadSetupError):
    """A response with HTTP 200 whose body is not a reply: a login page, an event stream, or that of another API."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Reason.CONFIGURATION_INVALID)


class TransientError(UnavailableError):
    """A temporary failure, after which the request should be repeated."""

    def __init__(
        self, message: str, pause: float | None = None, timed_out: bool = False, billed: bool = False
    ) -> None:
        """
        Args:
            pause: the seconds that the service asks to wait; None: it asks for nothing.
            timed_out: whether the request was sent and not answered in time.
            billed: whether the request may have a cost. One that timed out may have one in any case.
        """
        super().__init__(message, Reason.LLM_UNAVAILABLE)
        self.pause = pause
        self.timed_out = timed_out
        self.billed = billed or timed_out


class Provider(Protocol):
    """A language model that answers questions about images."""

    async def ask(self, question: Question) -> Reply:
        """Send one question.

        Raises:
            ImageRefusedError: when this image is declined; other images may be accepted.
            MalformedReplyError: when the body is not a reply.
            TransientError: when the request should be repeated.
            RefusedCredentialsError, BadSetupError: when the service or its configuration is wrong.
        """
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
