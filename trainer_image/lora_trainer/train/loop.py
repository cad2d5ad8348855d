"""The training loop.

A step uses the same samples and random values on one process or several, uninterrupted or resumed. The loop is one
module because the functions of a step share one `TrainState`.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Protocol

import torch
from accelerate import PartialState
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import Parameter
from torch.optim.lr_scheduler import LRScheduler

from lora_api.job import Training
from lora_api.training import Timesteps

from .data.encode import Latent, TextEmbedding
from .data.rng import image_index, sample_rng, sample_timestep
from .data.streams import SampleStream
from .data.transfer import to_device
from .ema import EMA
from .finite import BASE_WEIGHT, TEXT_EMBEDDING, DivergedError, all_finite, divergence_advice, quote
from .graphs import PassGraphs
from .model.flat_parameters import FlatParameters
from .model.precision import autocast
from .model.token_embeddings import TokenEmbeddings
from .objective import Batch, predict, sample_losses
from .optimizers import MAX_GRADIENT_NORM, NeedsSums, average_of
from .rank_dropout import RankDropout
from .records import Record, is_measured, is_out_of_patience

log = logging.getLogger(__name__)
MAX_BAD_STEPS = 3
"""The run ends after this many consecutive steps that were skipped because a value was not finite."""


class Hook(Protocol):
    """An action after every step."""

    def after_step(self, state: TrainState) -> None:
        """Act after a step. `state.stopped` tells whether the run stops after it."""


@dataclass
class TrainState:
    """The objects that a step needs or changes, for the steps of one phase."""

    distributed: PartialState
    training: Training
    unet: UNet2DConditionModel
    noise_scheduler: DDPMScheduler
    streams: Sequence[SampleStream]
    embed: Callable[[str], TextEmbedding]
    """Returns the embedding of a caption."""
    flat: FlatParameters
    optimizer: torch.optim.Optimizer
    lr_scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    dtype: torch.dtype
    """Number format of the frozen base model."""
    steps: range
    """The job's steps in which these parameters are trained, counted from 0."""
    ema: EMA | None = None
    """The moving average of the parameters; None where the job does not set emaDecay."""
    held_out: SampleStream | None = None
    """Samples that the held-out loss is measured on."""
    token_embeddings: TokenEmbeddings | None = None
    """The new tokens; None where the job does not train token embeddings."""
    rank_dropout: RankDropout | None = None
    """The dropout of ranks; None where the job does not set adapter.rankDropout."""
    graphs: PassGraphs | None = None
    """The CUDA graphs of passes; None where passes always run eagerly."""
    records: list[Record] = field(default_factory=list)
    """One record for each step of the job so far, earlier phases included."""
    stopped: bool = False
    """Whether the run stops after the last step; the same on all processes."""

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The trained parameters by name, in float32."""
        return self.flat.named

    @property
    def step(self) -> int:
        """Number of steps done, skipped ones included."""
        return len(self.records)

    @property
    def is_done(self) -> bool:
        """Whether the last step of the range is done, or training stops early (`records.is_out_of_patience`)."""
        return self.step >= self.steps.stop or is_out_of_patience(self.records, self.training)

    @property
    def result(self) -> Mapping[str, Tensor]:
        """The weights that would be published now, by name: float32, the parameters' shapes."""
        if self.ema:
            return self.ema.shadow
        return average_of(self.optimizer, self.parameters) or self.parameters

    def swapped_result(self) -> AbstractContextManager[object]:
        """Set the parameters to `result` within the block, for measurements and previews."""
        result = self.result
        return nullcontext() if result is self.parameters else self.flat.swapped(result)

    def is_sound(self) -> bool:
        """Return whether the trained weights are finite."""
        return all_finite([self.flat.values])


def train(state: TrainState, asked_to_stop: Callable[[], bool], hooks: Sequence[Hook]) -> bool:
    """Train from the current step until the state is done or a process is asked to stop.

    Args:
        asked_to_stop: returns whether this process was asked to stop; all processes stop after the same step.
        hooks: called after every step, in order.

    Returns:
        Whether the state is done; False where the run was stopped before.

    Raises:
        DivergedError: see `_refuse_divergence`.
    """
    while not state.is_done:
        started = time.perf_counter()
        loss = accumulate(state, state.step)
        loss, state.stopped = _reduce(state, loss, asked_to_stop())
        loss_value, norm = _update(state, loss)
        # The forward pass is repeated only after a bad step, to find the value that is not finite.
        place = None if None not in (loss_value, norm) else locate_not_finite(state, state.step)
        if place:
            log.warning("step %d is skipped: %s is not finite", state.step + 1, place)
        elif state.ema:
            state.ema.update(state.step + 1 - state.steps.start)
        learning_rate = float(state.lr_scheduler.get_last_lr()[0])
        with warnings.catch_warnings():
            # If the first optimizer step was skipped, torch warns that the scheduler is called before the optimizer.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            state.lr_scheduler.step()
        seconds = time.perf_counter() - started
        held_out = held_out_loss(state) if is_measured(state.step + 1, state.training) else None
        state.records.append(
            Record(state.step + 1, loss_value, learning_rate, norm, seconds, held_out, place)
        )
        _refuse_divergence(state)
        for hook in hooks:
            hook.after_step(state)
        if state.stopped:
            break
    return state.is_done


def accumulate(state: TrainState, step: int) -> Tensor:
    """Run forward and backward passes on this process's share of a step's samples.

    A step of G = batchSize x gradientAccumulationSteps x processes samples takes the samples
    step * G to step * G + G - 1 of every stream.

    Returns:
        The sum over the streams of the share's mean weighted loss: float32, (), on the training device.
    """
    training, distributed = state.training, state.distributed
    share = training.batch_size * training.gradient_accumulation_steps
    first = (step * distributed.num_processes + distributed.process_index) * share
    total = torch.zeros((), device=distributed.device)
    state.flat.use_compute_copy()
    work, is_first = partial(_pass, state), True
    remaining = (state.steps.stop - step) * training.gradient_accumulation_steps
    for start in range(first, first + share, training.batch_size):
        with _autocast(state):  # covers the text encoders too: where they are trained, `batches` runs them
            for batch in batches(state, range(start, start + training.batch_size)):
                if state.graphs:
                    total += state.graphs.run(batch, work, remaining=remaining, is_first=is_first)
                else:
                    total += work(batch)
                is_first = False
        remaining -= 1
    return total


def _pass(state: TrainState, batch: Batch) -> Tensor:
    """Run the forward and backward pass of a batch, and collect its gradients.

    Returns:
        The batch's part of the step's loss: float32, (), on the training device.
    """
    share = state.training.batch_size * state.training.gradient_accumulation_steps
    # The block includes the backward pass, where gradient checkpointing repeats the forward pass.
    with state.rank_dropout.applied(batch) if state.rank_dropout else nullcontext():
        losses = sample_losses(state.unet, state.noise_scheduler, batch, state.training)
        loss = losses.sum() / share
        state.scaler.scale(loss).backward()
    state.flat.collect()
    return loss.detach()


@torch.no_grad()
def held_out_loss(state: TrainState) -> float | None:
    """Measure the mean loss of `state.result` on the held-out samples; None if it is not finite.

    Every call uses the same images, noise and evenly spread timesteps, so that measurements differ by the
    weights alone. No caption is dropped, and the noise has no offset: both are options of training only.
    """
    stream, training, distributed = state.held_out, state.training, state.distributed
    assert stream is not None
    count, timesteps = training.validation.samples, state.noise_scheduler.config.num_train_timesteps
    total = torch.zeros((), device=distributed.device)
    state.flat.use_compute_copy()
    for sample in range(distributed.process_index, count, distributed.num_processes):
        index = sample % len(stream.latents)
        with _autocast(state), state.swapped_result():  # the text encoders too may have trained weights
            chosen = Sample(stream, sample, stream.latents[index], stream.captions[index])
            batch = _batch(state, [chosen], is_trained=False)
            # The middle of the sample's interval, where the timesteps are divided into `count` equal intervals.
            timestep = torch.full_like(batch.timesteps, (2 * sample + 1) * timesteps // (2 * count))
            batch = replace(batch, timesteps=timestep)
            total += sample_losses(state.unet, state.noise_scheduler, batch, training).sum()
    if distributed.num_processes > 1:
        torch.distributed.all_reduce(total)
    return _finite_or_none(float(total / count))


def batches(state: TrainState, samples: range) -> list[Batch]:
    """Load the samples of every stream, grouped into batches that have one latent shape each."""
    chosen = []
    for stream in state.streams:
        for sample in samples:
            index = image_index(state.training.seed, stream.name, sample, len(stream.latents))
            chosen.append(_sample(state, stream, sample, index))
    chosen.sort(key=lambda item: tuple(item.latent.mean.shape))  # a stable sort: groups keep the order
    groups = groupby(chosen, key=lambda item: tuple(item.latent.mean.shape))
    return [_batch(state, list(group)) for _, group in groups]


@dataclass(frozen=True)
class Sample:
    """The variant of an image and the caption that were chosen for one sample."""

    stream: SampleStream
    number: int
    """Number of the sample in its stream, from 0."""
    latent: Latent
    caption: str


def _sample(state: TrainState, stream: SampleStream, number: int, index: int) -> Sample:
    """Choose the variant and the caption of an image, given by its index in the stream, for a sample."""
    seed = state.training.seed
    return Sample(
        stream, number, stream.latent_of(seed, number, index), stream.caption_of(seed, number, index)
    )


def _batch(state: TrainState, chosen: Sequence[Sample], is_trained: bool = True) -> Batch:
    """Draw the random values of samples with one latent shape, and move all tensors to the training device.

    Args:
        is_trained: whether captions are dropped and the noise has an offset.
    """
    training, timesteps = state.training, state.noise_scheduler.config.num_train_timesteps
    dropout, offset = (training.caption_dropout, training.noise_offset) if is_trained else (0, 0)
    rngs, latents, ids, texts = [], [], [], []
    for item in chosen:
        latent = item.latent
        rng = sample_rng(training.seed, item.stream.name, item.number, tuple(latent.mean.shape), timesteps)
        rngs.append(rng)
        latents.append(latent.sample(rng.posterior))
        ids.append(latent.time_ids)
        dropped = rng.dropout < dropout
        texts.append(state.embed("" if dropped else item.caption))
    # A constant offset for each channel lets the model learn the overall brightness (Guttenberg 2023,
    # crosslabs.org, "Diffusion with offset noise").
    noise = torch.stack([rng.noise + float(offset) * rng.offset for rng in rngs])
    drawn = [rng.timestep for rng in rngs]
    if training.timesteps != Timesteps():
        drawn = [
            sample_timestep(training.seed, item.stream.name, item.number, timesteps, training.timesteps)
            for item in chosen
        ]
    mask, device = _mask(chosen, float(training.masking.outside_weight)), state.distributed.device
    return Batch(
        latents=to_device(torch.stack(latents), device),
        noise=to_device(noise, device),
        timesteps=to_device(torch.tensor(drawn), device),
        text=to_device(torch.stack([text.sequence for text in texts]), device),
        pooled=to_device(torch.stack([text.pooled for text in texts]), device),
        time_ids=to_device(torch.stack(ids), device),
        weights=to_device(torch.tensor([item.stream.weight for item in chosen]), device),
        mask=None if mask is None else to_device(mask, device),
        samples=tuple((item.stream.name, item.number) for item in chosen),
    )


def _mask(chosen: Sequence[Sample], outside: float) -> Tensor | None:
    """Convert the samples' masks to loss weights; images without a mask have weight 1 everywhere.

    Returns:
        float32, (n, 1, height, width) in latent pixels; None where all weights are 1.
    """
    if outside == 1 or all(item.latent.mask is None for item in chosen):
        return None
    shape = (1, *chosen[0].latent.mean.shape[1:])
    masks = [torch.ones(shape) if item.latent.mask is None else item.latent.mask for item in chosen]
    return outside + (1 - outside) * torch.stack(masks)


def _autocast(state: TrainState) -> AbstractContextManager[object]:
    return autocast(state.distributed.device.type, state.training.adapter, state.dtype)


def _reduce(state: TrainState, loss: Tensor, stop: bool) -> tuple[Tensor, bool]:
    """Average gradients and loss over the processes.

    Returns:
        The mean loss, and whether any process was asked to stop.
    """
    count = state.distributed.num_processes
    if count == 1:
        return loss, stop
    # One message for both: the sum of the flags is positive if any process was asked to stop.
    both = torch.stack([loss, torch.full_like(loss, float(stop))])
    torch.distributed.all_reduce(state.flat.gradient)
    torch.distributed.all_reduce(both)
    state.flat.gradient /= count
    return both[0] / count, bool(both[1] > 0)


def _update(state: TrainState, loss: Tensor) -> tuple[float | None, float | None]:
    """Clip the gradients and step the optimizer, unless the loss or the gradient is not finite.

    Returns:
        The loss, and the gradient's norm before clipping; None in place of a value that is not finite.
    """
    state.scaler.unscale_(state.optimizer)
    norm = state.flat.gradient.norm()
    state.flat.gradient *= (MAX_GRADIENT_NORM / (norm + 1e-6)).clamp(max=1.0)
    optimizer = state.optimizer
    sums = optimizer.sums() if isinstance(optimizer, NeedsSums) else []
    # The only synchronisation of a step.
    numbers: list[float] = torch.stack([loss.float(), norm, *sums]).tolist()
    values, read = numbers[:2], numbers[2:]
    if all(map(math.isfinite, values)):
        if isinstance(optimizer, NeedsSums):
            optimizer.use(read)
        # Not `scaler.step`: it reads from the device whether the gradient is finite, which is known here.
        state.optimizer.step()
        if state.token_embeddings:
            state.token_embeddings.renormalize(state.parameters)
    state.scaler.update()
    state.flat.gradient.zero_()
    first, second = (value if math.isfinite(value) else None for value in values)
    return first, second


@torch.no_grad()
def locate_not_finite(state: TrainState, step: int) -> str:
    """Name the first value of a step that is not finite, by repeating its forward pass sample by sample."""
    if not state.is_sound():
        return "the trained weight"
    training, distributed = state.training, state.distributed
    share = training.batch_size * training.gradient_accumulation_steps
    first = (step * distributed.num_processes + distributed.process_index) * share
    for stream in state.streams:
        for sample in range(first, first + share):
            index = image_index(training.seed, stream.name, sample, len(stream.latents))
            with _autocast(state):
                item = _sample(state, stream, sample, index)
                batch = _batch(state, [item])
                if not all_finite([batch.text, batch.pooled]):
                    return f"{TEXT_EMBEDDING} of {quote(item.caption)}"
                if not all_finite([batch.latents]):
                    return f"the latent of the image with the caption {quote(item.caption)}"
                if not all_finite([predict(state.unet, state.noise_scheduler, batch)]):
                    if damaged := _damaged_weight(state.unet):
                        return f"{BASE_WEIGHT} {damaged}"
                    return f"the UNet's prediction at timestep {int(batch.timesteps)}"
                losses = sample_losses(state.unet, state.noise_scheduler, batch, training)
                if not all_finite([losses]):
                    return f"the loss at timestep {int(batch.timesteps)}"
    return "the gradient"


def _damaged_weight(unet: UNet2DConditionModel) -> str:
    """Return the name of the first frozen weight that is not finite; empty if all are."""
    return next(
        (
            name.replace(".base_layer", "")
            for name, weight in unet.named_parameters()
            if not weight.requires_grad and not all_finite([weight])
        ),
        "",
    )


def _finite_or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _refuse_divergence(state: TrainState) -> None:
    """Check the last steps of this phase.

    Raises:
        DivergedError: after `MAX_BAD_STEPS` consecutive bad steps, unless a lower loss scale can still help; or
            at the end, if the last steps include a bad one and no step succeeded or the weights are not finite.
    """
    own = state.records[state.steps.start :]
    last = own[-MAX_BAD_STEPS:]
    bad = [record for record in last if record.not_finite]
    has_failed = len(bad) == MAX_BAD_STEPS and not _can_recover(state)
    ends_without_success = state.is_done and all(record.not_finite for record in own)
    if bad and (has_failed or ends_without_success or (state.is_done and not state.is_sound())):
        place = bad[0].not_finite or ""
        raise DivergedError(
            f"{place} is not finite since step {bad[0].step} at learning rate {bad[0].learning_rate:g}: "
            + divergence_advice(place, state.dtype)
        )


def _can_recover(state: TrainState) -> bool:
    """Return whether a later step may succeed: in fp16, every overflow lowers the loss scale, as long as it is above 1."""
    return state.scaler.is_enabled() and state.scaler.get_scale() > 1
