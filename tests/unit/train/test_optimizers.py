"""Each optimizer by its name: it learns, and its state comes back through safetensors and JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import prodigyopt
import prodigyplus
import pytest
import torch
from diffusers.optimization import get_scheduler
from safetensors.torch import load, save

from lora_api.job import Training
from lora_trainer.train.optimizers import (
    NeedsSums,
    average_of,
    build_lr_scheduler,
    build_optimizer,
    continue_lr_scheduler,
    optimizer_state,
    restore_optimizer,
)

RATES = {
    "AdamW": "1e-2",
    "AdamW8bit": "1e-2",
    "Adafactor": "1e-2",
    "CAME": "3e-3",
    "Prodigy": "1",
    "ProdigyScheduleFree": "1",
}


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
        self.lr_scheduler = build_lr_scheduler(training, self.optimizer)

    def steps(self, count: int) -> float:
        loss = torch.zeros(())
        for _ in range(count):
            loss = (self.b @ self.a - self.target).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.lr_scheduler.step()
        return loss.item()


LIBRARIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "Prodigy": (prodigyopt.Prodigy, {"use_bias_correction": True, "safeguard_warmup": True}),
    "ProdigyScheduleFree": (prodigyplus.ProdigyPlusScheduleFree, {}),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_prodigy_takes_the_steps_of_its_library(name: str) -> None:
    """Whether the loop has read its sums or not, also with a rate of zero, and in several groups."""
    own, other = Problem(name), Problem(name)
    group = own.optimizer.param_groups[0]
    library, options = LIBRARIES[name]
    same = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
    other.optimizer = library([{"params": [other.a]}, {"params": [other.b]}], **same, **options)
    training = Training.model_validate({"optimizer": name, "textEncoder": {"train": True}})
    own.optimizer = build_optimizer(training, {"unet.a": own.a, "text_encoder.b": own.b})
    for problem in (own, other):
        for each, rate in zip(problem.optimizer.param_groups, (1, 1), strict=True):
            each["lr"] = rate
    generator = torch.Generator().manual_seed(0)
    for step in range(60):
        if name == "Prodigy":
            for each in (*own.optimizer.param_groups, *other.optimizer.param_groups):
                each["lr"] = 0.0 if step == 0 else 1.0
        for mine, its in ((own.a, other.a), (own.b, other.b)):
            mine.grad = mine.detach() + 0.1 * torch.randn(mine.shape, generator=generator)
            its.grad = mine.grad.clone()
        if step % 3:
            assert isinstance(own.optimizer, NeedsSums)
            own.optimizer.use(torch.stack([*own.optimizer.sums()]).tolist())
        own.optimizer.step()
        other.optimizer.step()
    assert torch.equal(own.a, other.a)
    assert torch.equal(own.b, other.b)
    for mine, its in zip(own.optimizer.param_groups, other.optimizer.param_groups, strict=True):
        # The schedule-free variant finds the step size of a step when the step begins.
        key = "d" if name == "Prodigy" else "d_prev"
        assert mine["d"] == its[key] > its["d0"]


@pytest.mark.parametrize("name", RATES)
def test_it_learns_and_resumes_exactly(name: str) -> None:
    steps = 300 if name.startswith("Prodigy") else 60  # it begins with a step size of 1e-6
    schedule = "constant" if name == "ProdigyScheduleFree" else "cosine"
    whole, first, second = (Problem(name, schedule, steps) for _ in range(3))
    initial = whole.steps(1)
    final = whole.steps(steps - 1)
    assert final < 0.7 * initial

    first.steps(25)
    tensors, rest = optimizer_state(first.optimizer)
    data = save({key: value.clone() for key, value in tensors.items()})
    words = json.dumps([rest, first.lr_scheduler.state_dict()])
    second.a.data, second.b.data = first.a.data.clone(), first.b.data.clone()
    rest, learning_rates = json.loads(words)
    restore_optimizer(second.optimizer, load(data), rest)
    second.lr_scheduler.load_state_dict(learning_rates)
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
    lr_scheduler = build_lr_scheduler(training, optimizer)
    seen = []
    for _ in range(110):
        seen.append(lr_scheduler.get_last_lr()[0])
        optimizer.step()
        lr_scheduler.step()
    expected = [
        1e-4 * (step / 10 if step < 10 else (1 + math.cos(math.pi * (step - 10) / 100)) / 2)
        for step in range(110)
    ]
    assert seen == pytest.approx(expected)


def test_a_schedule_free_optimizer_publishes_its_average() -> None:
    problem = Problem("ProdigyScheduleFree")
    parameters = {"unet.a": problem.a, "unet.b": problem.b}
    problem.steps(40)
    averages = average_of(problem.optimizer, parameters)
    assert averages is not None
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    problem.optimizer.eval()  # the library's own way, in place
    for name, parameter in parameters.items():
        torch.testing.assert_close(averages[name], parameter.detach(), rtol=1e-4, atol=1e-6)
        assert not torch.equal(averages[name], before[name])
    assert average_of(Problem("AdamW").optimizer, parameters) is None


def curve(optimizer: str = "AdamW", **settings: Any) -> list[float]:
    training = Training.model_validate({"optimizer": optimizer, "maxSteps": 40, **settings})
    built = build_optimizer(training, {"unet.a": torch.nn.Parameter(torch.zeros(2))})
    scheduler = build_lr_scheduler(training, built)
    learning_rates = []
    for _ in range(40):
        learning_rates.append(scheduler.get_last_lr()[0])
        built.step()
        scheduler.step()
    return learning_rates


SCHEDULES = ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 8])
def test_each_schedule_has_the_shape_of_diffusers(name: str, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1e-4)
    library = get_scheduler(
        # diffusers' constant ignores the warm-up, and its polynomial ends at a rate of its own.
        "constant_with_warmup" if name == "constant" else name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=40,
        num_cycles=3,
        power=2.0,
    )
    expected = []
    for _ in range(40):
        expected.append(library.get_last_lr()[0])
        optimizer.step()
        library.step()
    end = 1e-7 if name == "polynomial" else 0
    assert curve(lrScheduler=name, lrWarmupSteps=warmup) == pytest.approx(expected, abs=1e-9 + end, rel=1e-6)


def test_no_two_schedules_are_the_same() -> None:
    curves = {tuple(curve(lrScheduler=name, lrWarmupSteps=5)) for name in SCHEDULES}
    assert len(curves) == len(SCHEDULES) - 1  # constant with a warm-up is constant_with_warmup


@pytest.mark.parametrize("name", SCHEDULES[2:])
@pytest.mark.parametrize("optimizer", ["AdamW", "Adafactor", "CAME", "Prodigy"])
def test_a_falling_rate_ends_at_the_jobs_share(name: str, optimizer: str) -> None:
    learning_rates = curve(optimizer, lrScheduler=name, lrSchedulerEndRatio="0.25", lrWarmupSteps=4)
    assert learning_rates[0] == 0
    assert learning_rates[4] == max(learning_rates)
    assert 0.25 * max(learning_rates) <= min(learning_rates[4:]) < 0.5 * max(learning_rates)


def test_the_number_of_cycles_and_the_power_change_the_curve() -> None:
    restarts = curve(lrScheduler="cosine_with_restarts", lrSchedulerCycles=4)
    assert [step for step in range(1, 40) if restarts[step] == pytest.approx(1e-4)] == [10, 20, 30]
    assert curve(lrScheduler="polynomial", lrSchedulerPower="1") == pytest.approx(curve(lrScheduler="linear"))
    assert curve(lrScheduler="polynomial") != pytest.approx(curve(lrScheduler="linear"))


def test_a_new_optimizer_continues_the_schedule_at_its_own_rates() -> None:
    training = Training.model_validate(
        {
            "optimizer": "AdamW",
            "lrScheduler": "linear",
            "maxSteps": 10,
            "learningRate": "1",
            "loraPlusRatio": "4",
        }
    )
    parameters = {f"unet.q.lora_{part}.default.weight": torch.nn.Parameter(torch.ones(2)) for part in "AB"}
    optimizer = build_optimizer(training, parameters)
    scheduler = build_lr_scheduler(training, optimizer)
    continue_lr_scheduler(scheduler, training, 5)
    assert [group["lr"] for group in optimizer.param_groups] == scheduler.get_last_lr() == [0.5, 2.0]
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.4, 1.6])
