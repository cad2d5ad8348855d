"""What a visitor asks for; apart from the painter, which takes seconds to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wish:
    """What to draw."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance: float
    resolution: int
    """Side of the square, in pixels."""


@dataclass(frozen=True)
class Layer:
    """An adapter and how strongly it acts; 1 is as trained."""

    path: Path
    weight: float

    @property
    def name(self) -> str:
        """peft's name for it: a file is named by its sha256."""
        return f"adapter_{self.path.stem[:16]}"
