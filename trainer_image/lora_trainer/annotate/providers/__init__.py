"""Language models that look at pictures, behind one protocol.

A provider asks once and says what came back; whether a reply is good enough, what it costs and whether to
ask again is decided by its caller, in one place for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from lora_api.steps import LLMAccess

from ...errors import BadConfigurationError
from ...store import read_credential

CALL_SECONDS = 60.0
"""Patience with one request."""

CALL_SECONDS_IN_ALL = 180.0
"""Patience with one request, its retries and the pauses that the server asks for."""


@dataclass(frozen=True)
class Question:
    """One image and what is asked about it."""

    system: str
    text: str
    jpeg: bytes
    schema: dict[str, Any]
    max_output_tokens: int


@dataclass(frozen=True)
class Reply:
    """What came back, and what it took."""

    text: str
    """JSON after the question's schema, if all went well."""
    problem: str = ""
    """Why the text cannot be whole: the model refused, or ran out of tokens."""
    input_tokens: int = 0
    output_tokens: int = 0


class Provider(Protocol):
    """A model to ask."""

    async def ask(self, question: Question) -> Reply:
        """Ask once, with the client library's own retries.

        Raises:
            RefusedCredentialsError, BadSetupError: nothing that trying again would change.
            UnavailableError: the service is away or overloaded; the pod is tried again later.
        """
        ...

    async def close(self) -> None: ...


def make_provider(access: LLMAccess) -> Provider:
    """The provider that a step file names; its client library is imported here and not before.

    Raises:
        RefusedCredentialsError: when the key's file is missing or empty.
    """
    if access.provider == "anthropic":
        from .anthropic import AnthropicProvider

        return AnthropicProvider(
            model=access.model,
            api_key=read_credential(access.credentials_dir, "apiKey"),
            base_url=access.base_url,
        )
    raise BadConfigurationError(f"no such LLM provider: {access.provider}")
