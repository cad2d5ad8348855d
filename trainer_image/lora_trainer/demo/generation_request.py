"""Types of generation requests. Separate from the image generator, whose import takes seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class GenerationRequest:
    """The settings of one image."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    """Sampling steps."""
    guidance: float
    """Scale of classifier-free guidance."""
    resolution: int
    """Width and height in pixels."""

    def with_seed(self, seed: int) -> GenerationRequest:
        """Copy the request with another seed."""
        return replace(self, seed=seed)


@dataclass(frozen=True)
class AppliedAdapter:
    """An adapter and its strength."""

    path: Path
    """File of the adapter, named by its sha256."""
    strength: float
    """1 is as trained."""
    embeddings: Path | None = None
    """File of the embeddings of its new tokens; None if it has none."""
    word: str = ""
    """The concept's token, in whose place prompts get the new tokens."""

    @property
    def name(self) -> str:
        """Name of the adapter in peft, from the sha256 in the file name."""
        return f"adapter_{self.path.stem[:16]}"
