"""The small base model as it is after a training: with new tokens, or with the weights of another step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file
from torch import Tensor

from lora_trainer.new_tokens import insert_tokens, token_names
from lora_trainer.train.model.token_embeddings import load_into
from tools.shapes import pipeline
from tools.shapes.concepts import TOKEN


class NewTokensPipeline(StableDiffusionXLPipeline):  # type: ignore[misc]
    """The small base model with trained tokens, which prompts get in place of the concept's token."""

    @classmethod
    def open(cls, embeddings: Path) -> NewTokensPipeline:
        loaded: NewTokensPipeline = cls.from_pretrained(pipeline.FOLDER, dtype=torch.float32)
        matrices = load_file(embeddings)
        loaded._tokens = token_names(len(matrices["clip_l"]))
        load_into(loaded, matrices, loaded._tokens)
        return loaded

    def __call__(self, prompts: list[str], **settings: Any) -> Any:
        return super().__call__(
            [insert_tokens(self._tokens, prompt, TOKEN) for prompt in prompts], **settings
        )


def replace_weights(loaded: StableDiffusionXLPipeline, weights: Mapping[str, Tensor]) -> None:
    """Replace weights of a pipeline, or of the adapter that it has loaded, by those of a step of a training."""
    by_component: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in weights.items():
        component, _, path = name.partition(".")
        by_component[component][path] = value
    for component, values in by_component.items():
        unknown = getattr(loaded, component).load_state_dict(values, strict=False).unexpected_keys
        assert not unknown, unknown
