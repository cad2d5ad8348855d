from __future__ import annotations

from dataclasses import replace

import pytest

from lora_api.job import Training
from lora_trainer.train.records import Record, best_step, is_measured, is_out_of_patience


def records(held_out: list[float | None], losses: list[float] | None = None) -> list[Record]:
    losses = losses or [1.0] * len(held_out)
    return [
        Record(index + 1, loss, 1e-4, 1.0, 0.1, value)
        for index, (value, loss) in enumerate(zip(held_out, losses, strict=True))
    ]


HELD_OUT = [None, 0.5, None, 0.3, None, 0.3, 0.4]


@pytest.mark.parametrize(
    ("held_out", "losses", "publish", "best"),
    [
        (HELD_OUT, None, "LowestHeldOutLoss", 4),
        (HELD_OUT, None, "Last", None),
        (HELD_OUT, [1, 1, 3, 1, 1, 0.5, 0.6], "LowestTrainingLoss", 7),
        (HELD_OUT, [1, 0, 3, 1, 1, 0.5, 0.6], "LowestTrainingLoss", 2),
        # Step 7 is compared by its own loss alone: step 6 was measured too.
        (HELD_OUT, [1, 1, 3, 1, 1, 0.1, 0.6], "LowestTrainingLoss", 6),
        ([None, None], None, "LowestHeldOutLoss", None),
        ([], None, "LowestHeldOutLoss", None),
    ],
)
def test_the_best_step(
    held_out: list[float | None], losses: list[float] | None, publish: str, best: int | None
) -> None:
    training = Training.model_validate({"validation": {"everySteps": 2, "publish": publish}})
    assert best_step(records(held_out, losses), training) == best


@pytest.mark.parametrize(
    ("held_out", "patience", "over"),
    [
        ([0.5, 0.6, 0.7], 2, True),
        ([0.5, 0.6, 0.7], 3, False),
        ([0.5, 0.6, 0.4], 2, False),
        ([0.5, None, 0.5, None, 0.5], 2, True),
        ([0.5, 0.6, 0.7], 0, False),
        ([None, None], 1, False),
    ],
)
def test_patience(held_out: list[float | None], patience: int, over: bool) -> None:
    training = Training.model_validate({"validation": {"everySteps": 1, "patience": patience}})
    assert is_out_of_patience(records(held_out), training) is over


def test_a_step_before_the_weights_have_changed_is_not_the_best() -> None:
    validation = {"everySteps": 1, "publish": "LowestHeldOutLoss", "patience": 2}
    training = Training.model_validate({"maxSteps": 9, "validation": validation})
    warm_up, skipped, *others = records([0.1, 0.2, 0.9, 0.8])
    history = [replace(warm_up, learning_rate=0.0), replace(skipped, not_finite="the loss"), *others]
    assert best_step(history, training) == 4
    assert not is_out_of_patience(history, training)
    assert best_step(history[:2], training) is None


def test_where_factors_are_trained_only_their_steps_count() -> None:
    validation = {"everySteps": 1, "publish": "LowestHeldOutLoss", "patience": 2}
    training = Training.model_validate(
        {"maxSteps": 6, "validation": validation, "extraction": {"factorSteps": 3}}
    )
    tuned = records([0.1, 0.2, 0.3])
    assert best_step(tuned, training) is None
    assert not is_out_of_patience(tuned, training)
    both = records([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    assert best_step(both, training) == 4
    assert not is_out_of_patience(both[:-1], training)
    assert is_out_of_patience(both, training)


def test_what_is_due() -> None:
    training = Training.model_validate({"maxSteps": 7, "validation": {"everySteps": 3}})
    assert [step for step in range(1, 8) if is_measured(step, training)] == [3, 6, 7]
    assert not any(is_measured(step, Training(max_steps=7)) for step in range(1, 8))
