"""The base model's two text encoders.

They are trained with linear heads that predict the attributes stated in a caption from the encoders' outputs.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lora_trainer.train.data.rng import generator_for
from lora_trainer.train.model.base_model import TextEncoderModel
from lora_trainer.train.model.tiny import END, tiny_tokenizer

from .captions import ATTRIBUTES, LETTERS, OMITTED, WORDS, describe
from .drawing import sample_scenes
from .recipe import Batch, Plan, train_module

PLAN = Plan(steps=1500, learning_rate=1e-3, warmup_steps=30, decay_share=0.5)
BATCH = 64
WIDTH = 64
"""Width of each encoder and of the second's projection."""
LAYERS = 3
MAX_TOKENS = 48
"""Number of tokens of a text in training. No caption is longer, so further positions would only contain padding."""


def build() -> tuple[TextEncoderModel, TextEncoderModel]:
    """Create both encoders with random weights."""
    first, second = tiny_tokenizer(END, WORDS), tiny_tokenizer("!", WORDS)
    return (
        TextEncoderModel(first, CLIPTextModel(_config(first, "quick_gelu"))),
        TextEncoderModel(second, CLIPTextModelWithProjection(_config(second, "gelu"))),
    )


def _config(tokens: CLIPTokenizer, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        hidden_act=activation,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )


def embed(encoders: tuple[TextEncoderModel, TextEncoderModel], texts: list[str]) -> tuple[Tensor, Tensor]:
    """Embed texts for SDXL's UNet, as `lora_trainer.train.data.encode.encode_text` does for one text.

    Returns:
        the embeddings of the tokens, (n, 77, 2 * WIDTH), and the pooled projection, (n, WIDTH).
    """
    layers, pooled = [], torch.empty(0)
    for model in encoders:
        ids = model.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        output = model.encoder(ids.to(model.encoder.device), output_hidden_states=True)
        layers.append(output.hidden_states[-2])
        pooled = output[0]
    return torch.cat(layers, dim=-1), pooled


class AttributeHeads(nn.Module):
    """Linear heads that predict from the encoders' outputs what a caption states.

    There is one set of heads for each output of `_outputs`.
    """

    def __init__(self, encoders: tuple[TextEncoderModel, TextEncoderModel]) -> None:
        super().__init__()
        self.first, self.second = (model.encoder for model in encoders)
        sizes = {name: len(words) + 1 for name, words in ATTRIBUTES.items()}  # the last class is OMITTED
        # The heads also predict the letters of an unknown word, so that different tokens have different embeddings.
        sizes |= {f"letter {index}": len(LETTERS) + 1 for index in range(3)}
        self.heads = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(WIDTH, size) for name, size in sizes.items()}) for _ in range(3)
        )


def train(folder: Path) -> tuple[TextEncoderModel, TextEncoderModel]:
    """Train both encoders with their heads.

    Args:
        folder: for checkpoints.
    """
    torch.manual_seed(0)
    encoders = build()
    attribute_heads = AttributeHeads(encoders)

    def batch_at(step: int) -> Batch:
        # "towers" is part of the seed of the published model: another word would train another model.
        scenes = sample_scenes(BATCH, generator_for(0, "towers", step), new_pairs=True)
        captions = describe(scenes, random.Random(step))
        ids = _tokenize(encoders, [text for text, _, _ in captions])
        return ids | targets([(stated, unknown) for _, stated, unknown in captions])

    def loss_of(batch: Batch) -> Tensor:
        loss = torch.zeros(())
        for heads, output in zip(attribute_heads.heads, _outputs(encoders, batch), strict=True):
            for name, head in heads.items():
                loss = loss + cross_entropy(head(output), batch[name])
        return loss / 3

    train_module("text encoders", attribute_heads, batch_at, loss_of, PLAN, folder)
    standardize(encoders)
    return encoders


@torch.no_grad()
def standardize(encoders: tuple[TextEncoderModel, TextEncoderModel]) -> None:
    """Scale the embeddings to a standard deviation of 1.

    Each layer normalises the residual stream before reading it. Scaling the weights of all layers that write to the
    stream therefore scales the stream without changing the layers' outputs otherwise.
    """
    captions = describe(sample_scenes(256, generator_for(0, "standardise")), random.Random(0))
    hidden, pooled = embed(encoders, [text for text, _, _ in captions])
    for model, stream in zip(encoders, hidden.chunk(2, dim=-1), strict=True):
        text = getattr(model.encoder, "text_model", model.encoder)
        writers = [text.embeddings.token_embedding, text.embeddings.position_embedding]
        for layer in text.encoder.layers:
            writers += [layer.self_attn.out_proj, layer.mlp.fc2]
        for writer in writers:
            for parameter in writer.parameters():
                parameter.div_(stream.std())
    encoders[1].encoder.text_projection.weight /= pooled.std()


def _tokenize(encoders: tuple[TextEncoderModel, TextEncoderModel], texts: list[str]) -> Batch:
    return {
        f"ids {number}": model.tokenizer(
            texts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt"
        ).input_ids
        for number, model in enumerate(encoders)
    }


def _outputs(encoders: tuple[TextEncoderModel, TextEncoderModel], batch: Batch) -> list[Tensor]:
    """Return the penultimate state of each encoder at the end token, then the pooled projection: (n, width) each."""
    states, pooled = [], torch.empty(0)
    for number, model in enumerate(encoders):
        ids = batch[f"ids {number}"]
        output = model.encoder(ids, output_hidden_states=True)
        end = (ids == model.tokenizer.eos_token_id).int().argmax(dim=1)
        states.append(output.hidden_states[-2][torch.arange(len(ids)), end])
        pooled = output[0]
    return [*states, pooled]


def targets(captions: list[tuple[dict[str, int], str]]) -> dict[str, Tensor]:
    """Return the target indices of each head, (n,)."""
    targets_by_head = {}
    for name, words in ATTRIBUTES.items():
        indices = [stated[name] for stated, _ in captions]
        targets_by_head[name] = torch.tensor([len(words) if index == OMITTED else index for index in indices])
    for place in range(3):
        letters = [unknown[place] if unknown else "" for _, unknown in captions]
        targets_by_head[f"letter {place}"] = torch.tensor(
            [LETTERS.index(letter) if letter else len(LETTERS) for letter in letters]
        )
    return targets_by_head
