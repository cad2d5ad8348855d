"""The base model's two text encoders, trained to carry what a caption says to where the UNet reads it."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lora_trainer.train.base_model import TextTower
from lora_trainer.train.draws import generator_for
from lora_trainer.train.tiny import END, tiny_tokenizer

from .captions import LETTERS, SPOKEN, UNSAID, WORDS, describe
from .drawing import imagine
from .recipe import Plan, learn

PLAN = Plan(steps=1500, rate=1e-3, rise=30, fall=0.5)
BATCH = 64
WIDTH = 64
"""Of each encoder and of the second's projection."""
LAYERS = 3
READ_LENGTH = 48
"""Tokens that training looks at: no caption is longer, and later places repeat what the end token holds."""


def build() -> tuple[TextTower, TextTower]:
    first, second = tiny_tokenizer(END, WORDS), tiny_tokenizer("!", WORDS)
    return (
        TextTower(first, CLIPTextModel(_config(first, "quick_gelu"))),
        TextTower(second, CLIPTextModelWithProjection(_config(second, "gelu"))),
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


def embed(towers: tuple[TextTower, TextTower], texts: list[str]) -> tuple[Tensor, Tensor]:
    """What SDXL's UNet is told of each text, as `lora_trainer.train.encode.encode_text` tells it of one.

    Returns:
        (n, 77, both widths) and (n, projection).
    """
    layers, pooled = [], torch.empty(0)
    for tower in towers:
        ids = tower.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        output = tower.encoder(ids, output_hidden_states=True)
        layers.append(output.hidden_states[-2])
        pooled = output[0]
    return torch.cat(layers, dim=-1), pooled


class Reader(nn.Module):
    """Linear heads that say from an encoder's outputs what the caption said."""

    def __init__(self, towers: tuple[TextTower, TextTower]) -> None:
        super().__init__()
        self.first, self.second = (tower.encoder for tower in towers)
        sizes = {name: len(words) + 1 for name, words in SPOKEN.items()}  # the last: unsaid
        # An unknown word's letters too, so that its token stays to be told from others.
        sizes |= {f"letter {index}": len(LETTERS) + 1 for index in range(3)}
        self.heads = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(WIDTH, size) for name, size in sizes.items()}) for _ in range(3)
        )


def train(folder: Path) -> tuple[TextTower, TextTower]:
    torch.manual_seed(0)
    towers = build()
    reader = Reader(towers)

    def loss_at(step: int) -> Tensor:
        captions = describe(
            imagine(BATCH, generator_for(0, "towers", step), new_pairs=True), random.Random(step)
        )
        wanted = targets([(said, unknown) for _, said, unknown in captions])
        loss = torch.zeros(())
        for heads, output in zip(
            reader.heads, _outputs(towers, [text for text, _, _ in captions]), strict=True
        ):
            for name, head in heads.items():
                loss = loss + cross_entropy(head(output), wanted[name])
        return loss / 3

    learn("towers", reader, loss_at, PLAN, folder)
    standardise(towers)
    return towers


@torch.no_grad()
def standardise(towers: tuple[TextTower, TextTower]) -> None:
    """Bring what the UNet reads to deviation 1.

    Each layer reads the residual stream through a normalisation, so that scaling all that is written to the
    stream scales the stream alone.
    """
    captions = describe(imagine(256, generator_for(0, "standardise")), random.Random(0))
    hidden, pooled = embed(towers, [text for text, _, _ in captions])
    for tower, stream in zip(towers, hidden.chunk(2, dim=-1), strict=True):
        text = getattr(tower.encoder, "text_model", tower.encoder)
        writers = [text.embeddings.token_embedding, text.embeddings.position_embedding]
        for layer in text.encoder.layers:
            writers += [layer.self_attn.out_proj, layer.mlp.fc2]
        for writer in writers:
            for parameter in writer.parameters():
                parameter.div_(stream.std())
    towers[1].encoder.text_projection.weight /= pooled.std()


def _outputs(towers: tuple[TextTower, TextTower], texts: list[str]) -> list[Tensor]:
    """The pooled projection, and what each encoder's last layer but one holds at the end token: (n, width)."""
    found, pooled = [], torch.empty(0)
    for tower in towers:
        batch = tower.tokenizer(texts, padding="max_length", max_length=READ_LENGTH, return_tensors="pt")
        output = tower.encoder(batch.input_ids, output_hidden_states=True)
        end = (batch.input_ids == tower.tokenizer.eos_token_id).int().argmax(dim=1)
        found.append(output.hidden_states[-2][torch.arange(len(texts)), end])
        pooled = output[0]
    return [*found, pooled]


def targets(captions: list[tuple[dict[str, int], str]]) -> dict[str, Tensor]:
    """For each head the indices to name, (n,)."""
    wanted = {}
    for name, words in SPOKEN.items():
        indices = [said[name] for said, _ in captions]
        wanted[name] = torch.tensor([len(words) if index == UNSAID else index for index in indices])
    for place in range(3):
        letters = [unknown[place] if unknown else "" for _, unknown in captions]
        wanted[f"letter {place}"] = torch.tensor(
            [LETTERS.index(letter) if letter else len(LETTERS) for letter in letters]
        )
    return wanted
