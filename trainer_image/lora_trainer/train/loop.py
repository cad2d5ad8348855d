"""The training loop: from any step to the last, the same on one process or many, whole or resumed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from accelerate import PartialState
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import Parameter
from torch.optim.lr_scheduler import LRScheduler

from lora_api.exits import ExitCode
from lora_api.job import Training
from lora_api.reasons import Reason

from ..errors import StepError
from .average import Average, standing_in
from .draws import draw, picture_of
from .encode import Latent, TextEmbedding
from .objective import Batch, sample_losses
from .optimizers import MAX_GRADIENT_NORM
from .records import Record, is_measured, is_out_of_patience

log = logging.getLogger(__name__)
BAD_STEPS = 3
"""So many losses or gradient norms in a row that are no numbers end the run."""


class DivergedError(StepError):
    """The loss left the numbers; another try with the same settings would too."""

    exit_code = ExitCode.BAD_DATA
    default_reason = Reason.DIVERGED


@dataclass(frozen=True)
class Source:
    """A stream of samples."""

    name: str
    latents: Sequence[Latent]
    captions: Sequence[str]
    weight: float = 1.0
    """Of each sample's loss."""


@dataclass
class Learner:
    """All that a step needs or changes, for some of a job's steps."""

    state: PartialState
    training: Training
    unet: UNet2DConditionModel
    schedule: DDPMScheduler
    sources: Sequence[Source]
    texts: Callable[[str], TextEmbedding]
    parameters: dict[str, Parameter]
    optimizer: torch.optim.Optimizer
    rates: LRScheduler
    scaler: torch.amp.GradScaler
    dtype: torch.dtype
    steps: range
    """Those of the job that these parameters learn in, from 0."""
    average: Average | None = None
    """Of the parameters, where the job publishes that."""
    held_out: Source | None = None
    """What the held-out loss is measured on."""
    records: list[Record] = field(default_factory=list)
    gradient: Tensor = field(init=False)
    """One flat tensor; every parameter's gradient is a view of its part."""

    def __post_init__(self) -> None:
        parameters = list(self.parameters.values())
        sizes = [parameter.numel() for parameter in parameters]
        self.gradient = torch.zeros(sum(sizes), device=self.state.device)
        for parameter, part in zip(parameters, self.gradient.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return len(self.records)

    @property
    def is_done(self) -> bool:
        """Whether the last of its steps was made, or the held-out loss has stopped falling."""
        return self.step >= self.steps.stop or is_out_of_patience(self.records, self.training)

    @property
    def result(self) -> Mapping[str, Tensor]:
        """What the parameters would be published as now."""
        return self.average.values if self.average else self.parameters

    def showing_result(self) -> AbstractContextManager[object]:
        """Let the parameters be their result for as long as the block lasts, for what is measured and drawn."""
        return standing_in(self.average.values, self.parameters) if self.average else nullcontext()

    def is_sound(self, record: Record) -> bool:
        """Whether the adapter can have survived a step: its loss and its gradient were numbers."""
        # A gradient that overflows in fp16 is skipped and the scale lowered, as long as the scale can be.
        skipped = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        return record.loss is not None and (record.gradient_norm is not None or skipped)


def train(learner: Learner, asked_to_stop: Callable[[], bool], after_step: Callable[[bool], None]) -> bool:
    """Train from where the learner stands to its last step, or until the held-out loss has stopped falling.

    Args:
        asked_to_stop: whether this process was told to stop; all processes stop after the same step.
        after_step: called after every step, with whether the run stops here.

    Returns:
        Whether the learner is done.

    Raises:
        DivergedError: after three steps in a row whose loss or gradient norm is no number.
    """
    while not learner.is_done:
        begun = time.perf_counter()
        loss = accumulate(learner, learner.step)
        loss, stop = _share(learner, loss, asked_to_stop())
        norm = _update(learner)
        if learner.average:
            learner.average.update(learner.step + 1 - learner.steps.start)
        rate = float(learner.rates.get_last_lr()[0])
        learner.rates.step()
        seconds = time.perf_counter() - begun
        held_out = held_out_loss(learner) if is_measured(learner.step + 1, learner.training) else None
        learner.records.append(
            Record(learner.step + 1, _number(loss), rate, _number(norm), seconds, held_out)
        )
        _refuse_divergence(learner)
        after_step(stop)
        if stop:
            break
    return learner.is_done


def accumulate(learner: Learner, step: int) -> Tensor:
    """Run this process's share of a step's samples forward and backward; the mean loss of that share.

    A step of G = batchSize x gradientAccumulationSteps x processes samples takes the samples
    step * G to step * G + G - 1 of every source.
    """
    training, state = learner.training, learner.state
    share = training.batch_size * training.gradient_accumulation_steps
    first = (step * state.num_processes + state.process_index) * share
    total = torch.zeros((), device=state.device)
    for start in range(first, first + share, training.batch_size):
        with _autocast(learner):
            for batch in batches(learner, range(start, start + training.batch_size)):
                losses = sample_losses(learner.unet, learner.schedule, batch, float(training.snr_gamma))
                loss = losses.sum() / share
                learner.scaler.scale(loss).backward()
                total += loss.detach()
    return total


@torch.no_grad()
def held_out_loss(learner: Learner) -> float | None:
    """The training objective of what would be published, on the same samples at every call.

    None where it is no number.

    The pictures come in turn, each time with noise of its own, and the timesteps are spread evenly, so that
    measurements differ by the weights and not by chance.
    """
    source, training, state = learner.held_out, learner.training, learner.state
    assert source is not None
    count, timesteps = training.validation.samples, learner.schedule.config.num_train_timesteps
    total = torch.zeros((), device=state.device)
    for sample in range(state.process_index, count, state.num_processes):
        batch = _batch(learner, [(source, sample, sample % len(source.latents))])
        timestep = torch.full_like(batch.timesteps, (2 * sample + 1) * timesteps // (2 * count))
        with _autocast(learner), learner.showing_result():
            batch = replace(batch, timesteps=timestep)
            total += sample_losses(learner.unet, learner.schedule, batch, float(training.snr_gamma)).sum()
    if state.num_processes > 1:
        torch.distributed.all_reduce(total)
    return _number(total / count)


def batches(learner: Learner, samples: range) -> list[Batch]:
    """The samples of every source as batches of one latent shape each."""
    chosen = []
    for source in learner.sources:
        for sample in samples:
            index = picture_of(learner.training.seed, source.name, sample, len(source.latents))
            chosen.append((source, sample, index))
    chosen.sort(key=lambda item: tuple(item[0].latents[item[2]].mean.shape))  # stable
    groups = groupby(chosen, key=lambda item: tuple(item[0].latents[item[2]].mean.shape))
    return [_batch(learner, list(group)) for _, group in groups]


def _batch(learner: Learner, chosen: Sequence[tuple[Source, int, int]]) -> Batch:
    training, timesteps = learner.training, learner.schedule.config.num_train_timesteps
    drawn, latents, ids, texts = [], [], [], []
    for source, sample, index in chosen:
        latent = source.latents[index]
        chance = draw(training.seed, source.name, sample, tuple(latent.mean.shape), timesteps)
        drawn.append(chance)
        latents.append(latent.sample(chance.posterior))
        ids.append(latent.time_ids)
        dropped = chance.dropout < training.caption_dropout
        texts.append(learner.texts("" if dropped else source.captions[index]))
    # A constant for each channel lets the model learn the brightness of the whole (Guttenberg 2023,
    # crosslabs.org, "Diffusion with offset noise").
    noise = torch.stack([chance.noise + float(training.noise_offset) * chance.offset for chance in drawn])
    device = learner.state.device
    return Batch(
        latents=torch.stack(latents).to(device),
        noise=noise.to(device),
        timesteps=torch.tensor([chance.timestep for chance in drawn], device=device),
        text=torch.stack([t.sequence for t in texts]).to(device),
        pooled=torch.stack([t.pooled for t in texts]).to(device),
        time_ids=torch.stack(ids).to(device),
        weights=torch.tensor([source.weight for source, _, _ in chosen], device=device),
    )


def _autocast(learner: Learner) -> AbstractContextManager[object]:
    if learner.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(learner.state.device.type, learner.dtype)


def _share(learner: Learner, loss: Tensor, stop: bool) -> tuple[Tensor, bool]:
    """Average gradients and loss over the processes, and stop all of them if one was told to."""
    count = learner.state.num_processes
    if count == 1:
        return loss, stop
    both = torch.stack([loss, loss.new_tensor(float(stop))])
    torch.distributed.all_reduce(learner.gradient)
    torch.distributed.all_reduce(both)
    learner.gradient /= count
    return both[0] / count, bool(both[1] > 0)


def _update(learner: Learner) -> Tensor:
    """Clip the gradients, step the optimizer; the norm before clipping."""
    learner.scaler.unscale_(learner.optimizer)
    norm: Tensor = learner.gradient.norm()
    learner.gradient *= (MAX_GRADIENT_NORM / (norm + 1e-6)).clamp(max=1.0)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.gradient.zero_()
    return norm


def _number(value: Tensor) -> float | None:
    number = value.item()
    return number if math.isfinite(number) else None


def _refuse_divergence(learner: Learner) -> None:
    last = learner.records[-BAD_STEPS:]
    bad = [record for record in last if not learner.is_sound(record)]
    at_the_end = learner.step == learner.steps.stop and last[-1] in bad
    if len(bad) == BAD_STEPS or at_the_end:
        raise DivergedError(
            f"the loss or its gradient is no number since step {bad[0].step} at learning rate "
            f"{bad[0].learning_rate:g}: lower training.learningRate, add lrWarmupSteps, or train with "
            "mixedPrecision bf16 or fp32"
        )
