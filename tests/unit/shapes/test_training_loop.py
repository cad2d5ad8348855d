"""The loop that trains the parts of the small base model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tools.shapes import autoencoder, recipe
from tools.shapes.drawing import SIDE, Style
from tools.shapes.recipe import Batch, Plan, train_module

PLAN = Plan(steps=12, learning_rate=1e-2, warmup_steps=3, decay_share=0.5, ema_decay=0.9)


def batch_at(step: int) -> Batch:
    return {"inputs": torch.randn(4, 3, generator=torch.Generator().manual_seed(step))}


def train(folder: Path, fails_at: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)

    def loss_of(batch: Batch) -> Tensor:
        return (module(batch["inputs"]) - 1).square().mean()

    def interrupted(step: int) -> Batch:
        if step == fails_at:
            raise KeyboardInterrupt
        return batch_at(step)

    return train_module("part", module, interrupted, loss_of, PLAN, folder)


def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "SAVE_EVERY", 5)
    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", fails_at=8)
    resumed = train(tmp_path / "parts")
    assert all(
        torch.equal(one, other)
        for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    assert not whole.training


def test_the_average_lags_behind_the_weights(tmp_path: Path) -> None:
    averaged = train(tmp_path / "one")
    saved = torch.load(tmp_path / "one" / "part.pt", weights_only=True)["state"]
    assert torch.equal(averaged.weight, saved["average"]["weight"])
    assert not torch.equal(averaged.weight, saved["module"]["weight"])


def test_half_of_the_vaes_drawings_are_solid(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Style] = []

    def record(*args: object, style: Style, **options: object) -> Tensor:
        drawn.append(style)
        return torch.zeros(1, 3, SIDE, SIDE)

    monkeypatch.setattr(autoencoder, "draw", record)
    autoencoder.drawings(torch.device("cpu"))
    assert drawn.count(Style.SOLID) == 2 * drawn.count(Style.OUTLINE) == 2 * drawn.count(Style.HATCHED) > 0
