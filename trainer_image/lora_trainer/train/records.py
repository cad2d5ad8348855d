"""What is known of each step, and what follows from it: which step is the best, and whether to go on.

All judgements are made from the records alone, which checkpoints hold, so that a resumed run judges as an
undisturbed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from lora_api.job import Publish, Training


@dataclass(frozen=True)
class Record:
    """One optimizer step, a line of metrics.jsonl. What is no number is None."""

    step: int
    loss: float | None
    learning_rate: float
    gradient_norm: float | None
    """Before clipping."""
    seconds: float
    held_out_loss: float | None = None
    """After the step; None where it was not measured."""


def mean_loss(records: Sequence[Record]) -> float | None:
    """None where no loss was a number."""
    losses = [record.loss for record in records if record.loss is not None]
    return fmean(losses) if losses else None


def is_measured(step: int, training: Training) -> bool:
    """Whether the held-out loss is due after a step."""
    every = training.validation.every_steps
    return every > 0 and (step % every == 0 or step == training.max_steps)


def best_step(records: Sequence[Record], training: Training) -> int | None:
    """The measured step that is published if no better one comes; None where it is the last, whichever that is."""
    validation = training.validation
    scores: dict[int, float | None] = {}
    if validation.publish != Publish.LAST:
        for record in _candidates(records, training):
            if record.held_out_loss is not None:
                begin = max(0, record.step - validation.every_steps)
                by_training = validation.publish == Publish.LOWEST_TRAINING_LOSS
                since = records[begin : record.step]
                scores[record.step] = mean_loss(since) if by_training else record.held_out_loss
    numbers = {step: score for step, score in scores.items() if score is not None}
    return min(numbers, key=lambda step: numbers[step], default=None)


def is_out_of_patience(records: Sequence[Record], training: Training) -> bool:
    """Whether so many measurements as the job allows brought no lower held-out loss."""
    candidates, patience = _candidates(records, training), training.validation.patience
    losses = [record.held_out_loss for record in candidates if record.held_out_loss is not None]
    if not (patience and losses):
        return False
    return len(losses) - 1 - losses.index(min(losses)) >= patience


def _candidates(records: Sequence[Record], training: Training) -> Sequence[Record]:
    """The steps whose adapter can be published: where extracted factors are trained at the end, only theirs."""
    factor_steps = training.extraction.factor_steps
    return records[training.max_steps - factor_steps :] if factor_steps else records
