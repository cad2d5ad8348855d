"""Creation of the provider that a configuration names."""

from __future__ import annotations

from lora_api.stages import LLMAccess

from .protocol import Provider


def make_provider(access: LLMAccess) -> Provider:
    """Create the provider. Only the library that it needs is imported.

    Raises:
        RefusedCredentialsError: when the API key is missing, empty or cannot be sent.
        BadConfigurationError: when the CA file or the proxy cannot be used.
        BadSetupError: when a local model cannot be loaded.
    """
    if access.provider == "transformers":
        from .local import LocalProvider

        return LocalProvider(access.model)
    if access.provider == "openai":
        from .openai import OpenAIProvider

        return OpenAIProvider(access)
    from .anthropic import AnthropicProvider

    return AnthropicProvider(access)
