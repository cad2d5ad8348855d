"""Language models that look at pictures, behind one protocol.

A provider asks once and says what came back; whether a reply is good enough, what it costs and whether to
ask again is decided by its caller, in one place for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from lora_api.steps import LLMAccess

from ...store import read_credential


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds."""

    call: float = 60.0
    """For one request."""
    in_all: float = 180.0
    """For a request with its retries and the pauses that the service asks for."""


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


def make_provider(access: LLMAccess, patience: Patience | None = None) -> Provider:
    """The provider that a step file names; its library is imported here and not before.

    Raises:
        RefusedCredentialsError: when the key's file is missing or empty.
        BadSetupError: when a local model cannot be loaded.
    """
    patience = patience or Patience()
    if access.provider == "transformers":
        from .local import LocalProvider

        return LocalProvider(access.model)
    key = read_credential(access.credentials_dir, "apiKey")
    if access.provider == "openai":
        from .openai import OpenAIProvider

        return OpenAIProvider(model=access.model, api_key=key, base_url=access.base_url, patience=patience)
    from .anthropic import AnthropicProvider

    return AnthropicProvider(model=access.model, api_key=key, base_url=access.base_url, patience=patience)
