"""Scores during training by the features of the classifier, in place of a profile's scoring models.

The same classifier scores the adapters. What publishing by these scores gains is therefore the most that
scoring models could gain in the small world.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from lora_trainer.train.scoring import Scores
from tools.shapes import classifier
from tools.shapes.concepts import TOKEN, Concept, Prompt

PROMPTS = [
    Prompt(ground="white"),
    Prompt(colour="orange"),
    Prompt(colour="yellow", ground="green"),
    Prompt(colour="green", ground="red"),
    Prompt(colour="white", ground="blue", place="right"),
    Prompt(colour="red", ground="black", place="top"),
    Prompt(ground="yellow"),
    Prompt(colour="blue"),
    Prompt(colour="purple", ground="black"),
    Prompt(colour="blue", ground="green"),
    Prompt(colour="black", ground="orange", place="bottom"),
    Prompt(colour="yellow", ground="blue", place="left"),
]
"""Prompts of the images that a training is scored by. The evaluation has others."""


def previews(concept: Concept) -> dict[str, Any]:
    """Return the settings of the images that a training is scored by."""
    prompts = [prompt.text(f"{TOKEN} {concept.class_name}") for prompt in PROMPTS]
    return {"preview": {"prompts": prompts, "numInferenceSteps": 15, "guidanceScale": "3"}}


class ClassifierScorer:
    """Likeness is the mean cosine similarity of the classifier's features; fidelity the share of prompts that are followed."""

    def __init__(self, concept: Concept, references: Sequence[Image.Image]) -> None:
        self._model = classifier.load()
        self._expected = {prompt.text(concept.class_name): prompt.expected for prompt in PROMPTS}
        self._references = self._embed(classifier.to_batch(references))

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        """Score images. `prompts` has the prompt of each image, without the token."""
        batch = classifier.to_batch(images)
        likeness = float((self._embed(batch) @ self._references.T).mean())
        predicted = classifier.classify(self._model, batch)
        follows = [
            all(int(predicted[name][row]) == index for name, index in self._expected[prompt].items())
            for row, prompt in enumerate(prompts)
        ]
        return Scores(likeness, fmean(follows))

    @torch.no_grad()
    def _embed(self, batch: Tensor) -> Tensor:
        """Embed images, (n, 3, side, side) from -1 to 1, as vectors of norm 1: (n, 128)."""
        return normalize(self._model.trunk(batch), dim=-1)


@contextmanager
def scored_by_the_classifier(concept: Concept) -> Iterator[None]:
    """Let trainings in this process score their images by a `ClassifierScorer`."""

    def load(
        _config: object, _bucket: object, references: Sequence[Image.Image], _device: object
    ) -> ClassifierScorer:
        return ClassifierScorer(concept, references)

    with patch("lora_trainer.train.trainer.load_scorer", load):
        yield
