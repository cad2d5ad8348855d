"""A small classifier that says what a picture shows. It is trained on drawings alone, apart from the base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from lora_trainer.train.draws import generator_for

from .captions import SPOKEN
from .drawing import SIDE, Scenes, draw, imagine
from .recipe import Plan, learn

WEIGHTS = Path(__file__).with_name("judge.safetensors")
PLAN = Plan(steps=1000, rate=2e-3, rise=20, fall=0.7)
BATCH = 64
NOTHING = "nothing"
"""The shape of pictures that show no thing, or pieces of one."""
NOTHINGS = 8
"""So many of each batch are made to show nothing."""


class Judge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = [3, 24, 48, 96, 128]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1, groups=8), nn.GroupNorm(8, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * 16, 128), nn.SiLU())
        sizes = {name: len(words) for name, words in SPOKEN.items()}
        sizes["shape"] += 1
        self.heads = nn.ModuleDict({name: nn.Linear(128, size) for name, size in sizes.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """For every attribute the logits of its words, the shape's with NOTHING as the last.

        Args:
            pictures: (n, 3, SIDE, SIDE), from -1 to 1.
        """
        features = self.trunk(pictures)
        return {name: head(features) for name, head in self.heads.items()}


@torch.no_grad()
def judge(model: Judge, pictures: Tensor) -> dict[str, Tensor]:
    """For every attribute the index of the word that fits best, (n,)."""
    return {name: logits.argmax(dim=1) for name, logits in model(pictures).items()}


def to_batch(pictures: Sequence[Image.Image]) -> Tensor:
    """(n, 3, SIDE, SIDE), from -1 to 1, of pictures of any size."""
    small = [picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for picture in pictures]
    array = np.stack([np.asarray(picture, dtype=np.float32) for picture in small])
    return torch.from_numpy(array).permute(0, 3, 1, 2) / 127.5 - 1


def load() -> Judge:
    model = Judge()
    model.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return model.eval()


def save(model: Judge) -> None:
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, WEIGHTS)


def train(folder: Path) -> Judge:
    torch.manual_seed(0)
    model = Judge()

    def loss_at(step: int) -> Tensor:
        pictures, wanted = samples(step)
        found = model(pictures)
        seen = wanted["shape"] < len(SPOKEN["shape"])
        loss = cross_entropy(found["shape"], wanted["shape"])
        for name in found.keys() - {"shape"}:
            loss = loss + cross_entropy(found[name][seen], wanted[name][seen])
        return loss

    learn("judge", model, loss_at, PLAN, folder)
    return model


def samples(step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Drawings of all that there is, a little blurred and noisy, some of them broken."""
    chance = generator_for(0, "judge", step)
    scenes = imagine(BATCH, chance, new_shapes=True, new_pairs=True)
    pictures = draw(scenes, chance)
    soft = interpolate(avg_pool2d(pictures, 2), scale_factor=2, mode="bilinear")
    pictures = torch.lerp(pictures, soft, torch.rand(BATCH, 1, 1, 1, generator=chance))
    pictures = pictures + 0.1 * torch.rand(BATCH, 1, 1, 1, generator=chance) * torch.randn(
        pictures.shape, generator=chance
    )
    wanted = {field.name: getattr(scenes, field.name) for field in fields(Scenes)}
    half = NOTHINGS // 2
    pictures[:half] = shuffled(pictures[:half], chance)
    pictures[half:NOTHINGS] = (pictures[half:NOTHINGS] + pictures[NOTHINGS : NOTHINGS + half]) / 2
    wanted["shape"] = wanted["shape"].clone()
    wanted["shape"][:NOTHINGS] = len(SPOKEN["shape"])
    return pictures.clamp(-1, 1), wanted


def shuffled(pictures: Tensor, chance: torch.Generator) -> Tensor:
    """The pictures with their quarters in another order: the tiles of 4x4 moved about."""
    count, tiles, side = len(pictures), 4, SIDE // 4
    pieces = pictures.reshape(count, 3, tiles, side, tiles, side).permute(0, 2, 4, 1, 3, 5)
    pieces = pieces.reshape(count, tiles * tiles, 3, side, side)[
        :, torch.randperm(tiles * tiles, generator=chance)
    ]
    pieces = pieces.reshape(count, tiles, tiles, 3, side, side).permute(0, 3, 1, 4, 2, 5)
    return pieces.reshape(pictures.shape)
