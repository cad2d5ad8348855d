"""Hooks that run after each step. `Trainer` puts them in order."""

from __future__ import annotations

import logging
from dataclasses import replace
from statistics import fmean

import torch

from ..progress import Reporter
from .checkpoint import Checkpoints
from .context import TrainingContext
from .loop import TrainState
from .records import best_step, is_measured, mean_loss
from .sampling.scored_images import generate_scored_images, scored_prompts, without_token
from .scoring import Scores, relative_score

log = logging.getLogger(__name__)
SMOOTHING = 20
"""Number of steps over which the reported loss and speed are averaged."""


class ReportProgress:
    """Logs the loss, and reports step, loss, speed and scores to the operator."""

    def __init__(self, reporter: Reporter, total: int, done: int = 0) -> None:
        """
        Args:
            total: the steps of all variants of the job.
            done: the steps of the variants that have ended.
        """
        self._reporter = reporter
        self._total = total
        self._done = done

    def after_step(self, state: TrainState) -> None:
        recent = state.records[-SMOOTHING:]
        seconds, loss = fmean(record.seconds for record in recent), mean_loss(recent)
        step = self._done + state.step
        if state.step % SMOOTHING == 0:
            log.info("step %d of %d, loss %s", step, self._total, loss)
        scored = next((record for record in reversed(state.records) if record.score is not None), None)
        self._reporter.update(
            step,
            self._total,
            loss=loss,
            steps_per_second=1 / seconds if seconds else None,
            likeness=scored.likeness if scored else None,
            fidelity=scored.fidelity if scored else None,
        )


class MeasureScores:
    """Measures likeness and prompt fidelity after every step that `is_measured`.

    The main process generates and scores the images; all processes record its scores.
    """

    def __init__(self, context: TrainingContext) -> None:
        self._context = context

    def after_step(self, state: TrainState) -> None:
        if not is_measured(state.step, state.training):
            return
        values = torch.zeros(3, device=state.distributed.device)
        if state.distributed.is_main_process:
            self._context.release_graphs()
            values = torch.tensor(self._measure(state), device=state.distributed.device)
        if state.distributed.num_processes > 1:
            # All processes need the same scores, because they decide from them whether to stop.
            torch.distributed.broadcast(values, 0)
        likeness, fidelity, score = (round(value, 6) for value in values.tolist())
        state.records[-1] = replace(state.records[-1], likeness=likeness, fidelity=fidelity, score=score)
        log.info("step %d: likeness %.3f, fidelity %.3f", state.step, likeness, fidelity)

    def _measure(self, state: TrainState) -> tuple[float, float, float]:
        """Return likeness, fidelity relative to the base model's, and score."""
        context = self._context
        prompts = scored_prompts(context.previews.prompts)
        asked = [without_token(prompt, context.config.spec.concept) for prompt in prompts]

        def measure() -> Scores:
            assert context.scorer is not None
            images = generate_scored_images(
                context.model, context.modules, context.embed, state.training, prompts
            )
            return context.scorer.score(images, asked)

        if context.base_scores is None:
            with context.as_base_model():
                context.base_scores = measure()
        with state.swapped_result():
            scores = measure()
        # The record has the fidelity relative to the base model's.
        fidelity = scores.fidelity / max(context.base_scores.fidelity, 1e-6)
        return scores.likeness, fidelity, relative_score(scores, context.base_scores)


class KeepBestWeights:
    """Copies the weights to `context.best`, on the CPU, after every step that is the best so far."""

    def __init__(self, context: TrainingContext) -> None:
        self._context = context

    def after_step(self, state: TrainState) -> None:
        if best_step(state.records, state.training) == state.step:
            self._context.best = {name: value.detach().cpu().clone() for name, value in state.result.items()}


class GeneratePreviews:
    """Generates the previews every `preview.everySteps` steps, except after the last step (see `Trainer.publish`)."""

    def __init__(self, context: TrainingContext) -> None:
        self._context = context

    def after_step(self, state: TrainState) -> None:
        every = state.training.preview.every_steps
        is_last = state.is_done and state.steps.stop == state.training.max_steps
        if every and state.step % every == 0 and not is_last:
            self._context.generate_previews(with_base=False)


class SaveCheckpoints:
    """Saves a checkpoint every `checkpoint.everySteps` steps, after a phase's last step, and when the run stops."""

    def __init__(self, context: TrainingContext, checkpoints: Checkpoints) -> None:
        self._context = context
        self._checkpoints = checkpoints

    def after_step(self, state: TrainState) -> None:
        is_due = state.stopped or state.is_done or state.step % state.training.checkpoint.every_steps == 0
        if is_due and state.is_sound():
            self._checkpoints.save(self._context.checkpoint())
