"""A small classifier of the attributes of an image, trained on drawings independently of the base model."""

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

from lora_trainer.train.data.rng import generator_for

from .captions import ATTRIBUTES
from .drawing import SIDE, Scenes, draw, sample_scenes
from .recipe import Batch, Plan, train_module

WEIGHTS = Path(__file__).with_name("classifier.safetensors")
PLAN = Plan(steps=1000, learning_rate=2e-3, warmup_steps=20, decay_share=0.7)
BATCH = 64
NOTHING = "nothing"
"""The class of images that show no shape, or pieces of one."""
NOTHING_COUNT = 8
"""Number of images of each batch that show nothing."""


class AttributeClassifier(nn.Module):
    """A convolutional network with one linear head for each attribute."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = [3, 24, 48, 96, 128]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1, groups=8), nn.GroupNorm(8, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * 16, 128), nn.SiLU())
        sizes = {name: len(words) for name, words in ATTRIBUTES.items()}
        sizes["shape"] += 1
        self.heads = nn.ModuleDict({name: nn.Linear(128, size) for name, size in sizes.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits of every attribute; the last class of "shape" is NOTHING.

        Args:
            images: (n, 3, SIDE, SIDE), from -1 to 1.
        """
        features = self.trunk(images)
        return {name: head(features) for name, head in self.heads.items()}


@torch.no_grad()
def classify(model: AttributeClassifier, images: Tensor) -> dict[str, Tensor]:
    """Return the most likely index of every attribute, (n,)."""
    return {name: logits.argmax(dim=1) for name, logits in model(images).items()}


def to_batch(images: Sequence[Image.Image]) -> Tensor:
    """Convert images of any size to a batch, (n, 3, SIDE, SIDE) from -1 to 1."""
    small = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for image in images]
    array = np.stack([np.asarray(image, dtype=np.float32) for image in small])
    return torch.from_numpy(array).permute(0, 3, 1, 2) / 127.5 - 1


def load() -> AttributeClassifier:
    model = AttributeClassifier()
    model.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return model.eval()


def save(model: AttributeClassifier) -> None:
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, WEIGHTS)


def train(folder: Path) -> AttributeClassifier:
    torch.manual_seed(0)
    model = AttributeClassifier()

    def batch_at(step: int) -> Batch:
        images, labels = samples(step)
        return {"images": images, **labels}

    def loss_of(labels: Batch) -> Tensor:
        logits = model(labels["images"])
        # Images that show nothing have no other attributes to learn from.
        seen = labels["shape"] < len(ATTRIBUTES["shape"])
        loss = cross_entropy(logits["shape"], labels["shape"])
        for name in logits.keys() - {"shape"}:
            loss = loss + cross_entropy(logits[name][seen], labels[name][seen])
        return loss

    train_module("classifier", model, batch_at, loss_of, PLAN, folder)
    return model


def samples(step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return slightly blurred and noisy drawings of all shapes and fills, some of them broken, and their labels."""
    # "judge" is part of the seed of the published classifier: another word would train another one.
    generator = generator_for(0, "judge", step)
    scenes = sample_scenes(BATCH, generator, new_shapes=True, new_pairs=True)
    images = draw(scenes, generator)
    soft = interpolate(avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    images = torch.lerp(images, soft, torch.rand(BATCH, 1, 1, 1, generator=generator))
    images = images + 0.1 * torch.rand(BATCH, 1, 1, 1, generator=generator) * torch.randn(
        images.shape, generator=generator
    )
    labels = {field.name: getattr(scenes, field.name) for field in fields(Scenes)}
    # The first half of the images without a shape is shuffled, the second is blended with another image.
    half = NOTHING_COUNT // 2
    images[:half] = shuffled(images[:half], generator)
    images[half:NOTHING_COUNT] = (
        images[half:NOTHING_COUNT] + images[NOTHING_COUNT : NOTHING_COUNT + half]
    ) / 2
    labels["shape"] = labels["shape"].clone()
    labels["shape"][:NOTHING_COUNT] = len(ATTRIBUTES["shape"])
    return images.clamp(-1, 1), labels


def shuffled(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shuffle the 4x4 tiles of the images."""
    count, tiles, side = len(images), 4, SIDE // 4
    pieces = images.reshape(count, 3, tiles, side, tiles, side).permute(0, 2, 4, 1, 3, 5)
    pieces = pieces.reshape(count, tiles * tiles, 3, side, side)[
        :, torch.randperm(tiles * tiles, generator=generator)
    ]
    pieces = pieces.reshape(count, tiles, tiles, 3, side, side).permute(0, 3, 1, 4, 2, 5)
    return pieces.reshape(images.shape)
