"""Score generated images: likeness to the training images, and fidelity to the prompt.

Likeness is the mean cosine similarity between the embeddings of generated and training images, as in DreamBooth's DINO
and CLIP-I scores. Fidelity is the mean cosine similarity between the embeddings of an image and its prompt, as in its
CLIP-T score (Ruiz et al. 2022, arXiv:2208.12242, 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from lora_api.stages import TrainConfig

from ..errors import BadConfigurationError
from ..model_cache import provide_encoder
from ..pretrained import load, loading
from ..store import Bucket


@dataclass(frozen=True)
class Scores:
    """Scores of generated images."""

    likeness: float
    """Mean cosine similarity to the training images, from -1 to 1."""
    fidelity: float
    """Mean cosine similarity to the prompts, from -1 to 1."""


class Scorer(Protocol):
    """Scores generated images against the training images of a job."""

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        """Score images. `prompts` has the prompt of each image."""


class EmbeddingScorer:
    """Scores images with the embeddings of an image encoder (likeness) and a CLIP model (fidelity)."""

    def __init__(
        self, likeness: Path, fidelity: Path, references: Sequence[Image.Image], device: torch.device
    ) -> None:
        """
        Args:
            likeness: folder of the image encoder.
            fidelity: folder of the CLIP model.
            references: the training images.

        Raises:
            BadConfigurationError: if a model cannot be loaded, or the second one is not a CLIP model.
        """
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        what = "the profile's scoring.likeness"
        # Of an image classifier the class token is used, and not the pooler.
        self._encoder = load(AutoModel, likeness, what, unused=("pooler.",)).to(device).eval()
        with loading(what):
            self._prepare = AutoImageProcessor.from_pretrained(likeness)
        what = "the profile's scoring.fidelity"
        self._clip = load(AutoModel, fidelity, what).to(device).eval()
        with loading(what):
            self._prepare_clip = AutoImageProcessor.from_pretrained(fidelity)
            self._tokenizer = AutoTokenizer.from_pretrained(fidelity)
        if not hasattr(self._clip, "get_text_features"):
            raise BadConfigurationError(
                f"scoring.fidelity of the profile is a {type(self._clip).__name__}: name a CLIP model"
            )
        self._device = device
        self._references = self._embed(references)

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        """Score images. `prompts` has the prompt of each image."""
        likeness = self._embed(images) @ self._references.T
        pixels = self._prepare_clip(images=list(images), return_tensors="pt").pixel_values.to(self._device)
        tokens = self._tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        tokens = tokens.to(self._device)
        image_features = _features(self._clip.get_image_features(pixel_values=pixels))
        text_features = _features(
            self._clip.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        )
        return Scores(float(likeness.mean()), float((image_features * text_features).sum(dim=1).mean()))

    @torch.no_grad()
    def _embed(self, images: Sequence[Image.Image]) -> Tensor:
        """Embed images as vectors of norm 1: float32, (n, width)."""
        rgb = [image.convert("RGB") for image in images]
        pixels = self._prepare(images=rgb, return_tensors="pt").pixel_values.to(self._device)
        if hasattr(self._encoder, "get_image_features"):
            return _features(self._encoder.get_image_features(pixel_values=pixels))
        # The embedding of the class token describes the whole image.
        return _features(self._encoder(pixel_values=pixels).last_hidden_state[:, 0])


def _features(output: Any) -> Tensor:
    """Normalise embeddings, which transformers returns as a tensor or as `pooler_output`: float32, (n, width)."""
    features = output if isinstance(output, Tensor) else output.pooler_output
    return normalize(features.float(), dim=-1)


def relative_score(scores: Scores, base: Scores) -> float:
    """Combine likeness and fidelity into one number from 0 to 1.

    The score is the likeness times the ratio of the fidelity to the base model's, which counts as 1 at most. An adapter
    that repeats its training images whatever the prompt has a high likeness and a low fidelity. A fidelity above the
    base model's does not make up for a low likeness.
    """
    return max(scores.likeness, 0.0) * max(0.0, min(1.0, scores.fidelity / max(base.fidelity, 1e-6)))


def load_scorer(
    config: TrainConfig, bucket: Bucket, references: Sequence[Image.Image], device: torch.device
) -> Scorer:
    """Load the profile's scoring models.

    Raises:
        StageError: when the profile has none, or they cannot be fetched.
    """
    if config.scoring is None:
        raise BadConfigurationError(
            "training.validation needs scores, and the profile has no scoring models: add `scoring` to the profile"
        )
    likeness, fidelity = (
        provide_encoder(
            source, bucket, Path(config.cache_dir), prefetched=config.prefetched, what="scoring model"
        )
        for source in (config.scoring.likeness, config.scoring.fidelity)
    )
    return EmbeddingScorer(likeness, fidelity, references, device)
