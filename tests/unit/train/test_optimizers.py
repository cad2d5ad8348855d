"""Each optimizer by its name: it learns, and its state comes back through safetensors and JSON."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load, save

from lora_api.job import Training
from lora_trainer.train.optimizers import (
    build_optimizer,
    build_schedule,
    optimizer_state,
    restore_optimizer,
)

RATES = {"AdamW": "1e-2", "AdamW8bit": "1e-2", "Adafactor": "1e-2", "Prodigy": "1"}


class Problem:
    """Find two matrices whose product is a given one; the second starts at zero, as an adapter's does."""

    def __init__(self, name: str, schedule: str = "constant", steps: int = 60) -> None:
        generator = torch.Generator().manual_seed(0)
        self.a = torch.nn.Parameter(torch.randn(8, 512, generator=generator) / 8)
        self.b = torch.nn.Parameter(torch.zeros(512, 8))
        self.target = torch.randn(512, 4, generator=generator) @ torch.randn(4, 512, generator=generator) / 20
        training = Training.model_validate(
            {"optimizer": name, "learningRate": RATES[name], "lrScheduler": schedule, "maxSteps": steps}
        )
        self.optimizer = build_optimizer(training, {"unet.a": self.a, "unet.b": self.b})
        self.rates = build_schedule(training, self.optimizer)

    def steps(self, count: int) -> float:
        loss = torch.zeros(())
        for _ in range(count):
            loss = (self.b @ self.a - self.target).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.rates.step()
        return loss.item()


@pytest.mark.parametrize("name", RATES)
def test_it_learns_and_resumes_exactly(name: str) -> None:
    steps = 300 if name == "Prodigy" else 60  # it begins with a step size of 1e-6
    whole, first, second = (Problem(name, "cosine", steps) for _ in range(3))
    begun = whole.steps(1)
    ended = whole.steps(steps - 1)
    assert ended < 0.7 * begun

    first.steps(25)
    tensors, rest = optimizer_state(first.optimizer)
    data = save({key: value.clone() for key, value in tensors.items()})
    words = json.dumps([rest, first.rates.state_dict()])
    second.a.data, second.b.data = first.a.data.clone(), first.b.data.clone()
    rest, rates = json.loads(words)
    restore_optimizer(second.optimizer, load(data), rest)
    second.rates.load_state_dict(rates)
    second.steps(steps - 25)
    assert torch.equal(second.a, whole.a)
    assert torch.equal(second.b, whole.b)


def test_8_bit_states_are_8_bits_and_others_float32() -> None:
    states = {}
    for name in ("AdamW", "AdamW8bit"):
        problem = Problem(name)
        problem.steps(2)
        states[name], _ = optimizer_state(problem.optimizer)
    assert {t.dtype for t in states["AdamW"].values()} == {torch.float32}
    assert states["AdamW8bit"]["0 state1"].dtype == torch.uint8


def test_text_encoders_have_their_own_rate() -> None:
    training = Training.model_validate({"optimizer": "AdamW", "textEncoder": {"train": True}})
    one, other = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = build_optimizer(training, {"unet.a": one, "text_encoder.a": other})
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 5e-6]


def test_the_schedule_is_that_of_its_name() -> None:
    training = Training.model_validate(
        {"optimizer": "AdamW", "lrScheduler": "cosine", "lrWarmupSteps": 10, "maxSteps": 110}
    )
    optimizer = build_optimizer(training, {"unet.a": torch.nn.Parameter(torch.zeros(2))})
    rates = build_schedule(training, optimizer)
    seen = []
    for _ in range(110):
        seen.append(rates.get_last_lr()[0])
        optimizer.step()
        rates.step()
    expected = [
        1e-4 * (step / 10 if step < 10 else (1 + math.cos(math.pi * (step - 10) / 100)) / 2)
        for step in range(110)
    ]
    assert seen == pytest.approx(expected)
