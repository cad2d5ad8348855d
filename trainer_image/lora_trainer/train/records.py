"""Records of the steps, and the decisions made from them: which step is the best, and whether to stop early.

The decisions depend only on the records, which are part of every checkpoint. So a resumed run makes the same
decisions as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from lora_api.job import Publish, Training


@dataclass(frozen=True)
class Record:
    """The values of one step, a line of metrics.jsonl. A value that is not finite is None."""

    step: int
    """Number of the step, from 1."""
    loss: float | None
    learning_rate: float
    gradient_norm: float | None
    """Norm of the gradient before clipping."""
    seconds: float
    """Duration of the step without measurements and hooks."""
    held_out_loss: float | None = None
    """Held-out loss after the step; None where it was not measured."""
    not_finite: str | None = None
    """Name of the first value that was not finite; None where the step was not skipped."""
    likeness: float | None = None
    """`Scores.likeness` after the step; None where scores were not measured."""
    fidelity: float | None = None
    """`Scores.fidelity` after the step, divided by the base model's; None where scores were not measured."""
    score: float | None = None
    """`scoring.relative_score` after the step; None where scores were not measured."""


def mean_loss(records: Sequence[Record]) -> float | None:
    """Average the finite losses; None where there is none."""
    losses = [record.loss for record in records if record.loss is not None]
    return fmean(losses) if losses else None


def is_measured(step: int, training: Training) -> bool:
    """Return whether the held-out loss (and the scores, if the job needs them) is measured after a step."""
    every = training.validation.every_steps
    return every > 0 and (step % every == 0 or step == training.max_steps)


def best_step(records: Sequence[Record], training: Training) -> int | None:
    """Find the measured step to publish; None where the last step is published or nothing was measured."""
    validation = training.validation
    scores: dict[int, float | None] = {}
    if validation.publish == Publish.BEST_SCORE:
        scored = {r.step: r.score for r in _candidates(records, training) if r.score is not None}
        return max(scored, key=lambda step: scored[step], default=None)
    if validation.publish != Publish.LAST:
        for record in _candidates(records, training):
            if record.held_out_loss is not None:
                # The last measurement need not follow a multiple of everySteps.
                begin = (record.step - 1) // validation.every_steps * validation.every_steps
                by_training = validation.publish == Publish.LOWEST_TRAINING_LOSS
                since = records[begin : record.step]  # the steps since the previous measurement
                scores[record.step] = mean_loss(since) if by_training else record.held_out_loss
    numbers = {step: score for step, score in scores.items() if score is not None}
    return min(numbers, key=lambda step: numbers[step], default=None)


def is_complete(records: Sequence[Record], training: Training) -> bool:
    """Return whether a training has made its last step."""
    return len(records) >= training.max_steps or is_out_of_patience(records, training)


def is_out_of_patience(records: Sequence[Record], training: Training) -> bool:
    """Return whether training stops early: the last `patience` measurements were no better than an earlier one.

    A lower held-out loss is better; where the best score is published, a higher score is.
    """
    candidates, patience = _candidates(records, training), training.validation.patience
    losses = [record.held_out_loss for record in candidates if record.held_out_loss is not None]
    if training.validation.publish == Publish.BEST_SCORE:
        # Negated, so that the best score is the lowest value, as for losses.
        losses = [-record.score for record in candidates if record.score is not None]
    if not (patience and losses):
        return False
    return len(losses) - 1 - losses.index(min(losses)) >= patience


def _candidates(records: Sequence[Record], training: Training) -> Sequence[Record]:
    """Select the steps whose adapter can be published: from the first step that has changed the weights.

    Earlier steps were skipped, or had a learning rate of zero, as the first step of a warm-up has. With factorSteps, only the steps
    that train factors can be published.
    """
    factor_steps = training.extraction.factor_steps
    if factor_steps:
        return records[training.max_steps - factor_steps :]
    changed = (n for n, each in enumerate(records) if each.learning_rate > 0 and each.not_finite is None)
    return records[next(changed, len(records)) :]
