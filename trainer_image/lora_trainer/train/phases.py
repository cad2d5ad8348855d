"""The phases of a job: [TrainAdapter], or [FineTune, Extract, TrainFactors] for method DreamBoothExtract."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import PartialState
from diffusers import UNet2DConditionModel

from lora_api.job import Method, Training

from .checkpoint import Checkpoint
from .context import TrainingContext
from .interruption import Interruption
from .loop import Hook, batches, train
from .model.adapter import TEXT_ENCODERS, UNET, add_adapter
from .model.extract import (
    extract,
    make_trainable,
    prepare_adapter,
    put_adapter,
    ranks_of,
    report,
    tuned_weights,
)
from .model.initial_adapter import load_initial_adapter
from .model.quantize import quantize
from .model.token_embeddings import TokenEmbeddings
from .objective import predict
from .optimizers import continue_lr_scheduler

log = logging.getLogger(__name__)


class Phase(Protocol):
    """A part of a job's training."""

    @property
    def steps(self) -> range:
        """The optimizer steps of the job that this phase makes, counted from 0."""

    def begin(self, context: TrainingContext, checkpoint: Checkpoint | None) -> None:
        """Load the modules and the initial state, or the state of a checkpoint that was saved in this phase."""

    def run(self, context: TrainingContext, interruption: Interruption, hooks: Sequence[Hook]) -> bool:
        """Run to the end of the phase, or until the process is asked to stop.

        Returns:
            Whether the end was reached.
        """


def phases_of(training: Training) -> list[Phase]:
    """List the phases that a method goes through, in order."""
    if training.method != Method.DREAMBOOTH_EXTRACT:
        return [TrainAdapter(range(training.max_steps))]
    tuning_steps = training.max_steps - training.extraction.factor_steps
    return [
        FineTune(range(tuning_steps)),
        Extract(range(tuning_steps, tuning_steps), range(tuning_steps, training.max_steps)),
        TrainFactors(range(tuning_steps, training.max_steps)),
    ]


@dataclass(frozen=True)
class TrainAdapter:
    """Trains an adapter on the frozen base model."""

    steps: range

    def begin(self, context: TrainingContext, checkpoint: Checkpoint | None) -> None:
        training, device = context.training, context.distributed.device
        unet = context.model.unet(context.dtype)
        quantize(unet, training.quantize_base)
        context.modules = {UNET: unet.to(device)}
        add_adapter(unet, UNET, training.rank, training.alpha, training.seed, kind=training.adapter)
        _add_text_encoders(context)
        if training.token_embeddings.train:
            context.token_embeddings = TokenEmbeddings.add(
                context.model.text_encoders(context.dtype), training, context.config.spec.concept.token
            )
            for model in context.token_embeddings.models:
                model.encoder.to(device).eval()
            context.warn_of_long_captions()
        if context.initial_adapter and not checkpoint:
            load_initial_adapter(context.initial_adapter, context.modules, training)
        context.start(self.steps)
        if checkpoint:
            context.restore(checkpoint)

    def run(self, context: TrainingContext, interruption: Interruption, hooks: Sequence[Hook]) -> bool:
        return _train(context, interruption, hooks)


@dataclass(frozen=True)
class FineTune:
    """Trains the UNet's own weights, in float32, and adapters on the text encoders if they are trained."""

    steps: range

    def begin(self, context: TrainingContext, checkpoint: Checkpoint | None) -> None:
        with one_at_a_time(context.distributed):
            unet = context.model.unet(torch.float32)
            make_trainable(unet, context.training.extraction.convolutions)
            _round_frozen(unet, context.dtype)
            context.modules = {UNET: unet.to(context.distributed.device)}
        _add_text_encoders(context)
        context.start(self.steps)
        if checkpoint:
            context.restore(checkpoint)

    def run(self, context: TrainingContext, interruption: Interruption, hooks: Sequence[Hook]) -> bool:
        return _train(context, interruption, hooks)


@dataclass(frozen=True)
class Extract:
    """Replaces the fine-tuned UNet by the base UNet with an adapter that is extracted from the difference."""

    steps: range
    """An empty range: an extraction makes no optimizer step."""
    factor_steps: range
    """The steps in which the extracted factors are trained afterwards."""

    def begin(self, context: TrainingContext, checkpoint: Checkpoint | None) -> None:
        raise AssertionError("checkpoints are saved after steps, and an extraction makes none")

    def run(self, context: TrainingContext, interruption: Interruption, hooks: Sequence[Hook]) -> bool:
        # Signals are not deferred: they end the process at once. The last checkpoint has the fine-tuned weights.
        self.extract_adapter(context)
        return True

    def extract_adapter(self, context: TrainingContext) -> None:
        """Extract the adapter, start training its factors, and measure its error on a fixed batch."""
        training, device = context.training, context.distributed.device
        state, stopped = context.state, context.state.stopped
        context.select_published_weights()
        state.flat.use_compute_copy()
        records, step = state.records, state.lr_scheduler.last_epoch
        noise_scheduler = state.noise_scheduler
        base = context.model.unet(torch.float32)
        with torch.no_grad():
            probe = batches(state, range(1))[0]
            expected = predict(state.unet.eval(), noise_scheduler, probe)
            state.flat.use_float32()  # the extraction compares float32 weights
            tuned = tuned_weights(state.unet, training.extraction.convolutions)
            before = tuned_weights(base, training.extraction.convolutions)
            factors = extract(tuned, before, training.rank, training.extraction)
        put_adapter(base, factors, training.rank, training.alpha)
        # Free the fine-tuned UNet and its optimizer before the base UNet is moved to the device.
        del state, tuned
        context.release()
        gc.collect()
        _round_frozen(base, context.dtype)
        # The UNet comes first, as in `TrainFactors.begin`: a checkpoint has the parameters in this order.
        context.modules = {UNET: base.to(device), **context.modules}
        context.start(self.factor_steps)
        context.state.records, context.state.stopped = records, stopped
        continue_lr_scheduler(context.state.lr_scheduler, training, step)
        context.state.flat.use_compute_copy()
        with torch.no_grad():
            predicted = predict(base.eval(), noise_scheduler, probe)
        base.train()
        error = float((predicted - expected).norm() / expected.norm())
        context.layers = report(factors, error)
        log.info("adapter extracted from %d layers, output error %.3g", len(factors), error)


@dataclass(frozen=True)
class TrainFactors:
    """Trains the extracted factors on the base UNet, and the text encoders' adapters further."""

    steps: range

    def begin(self, context: TrainingContext, checkpoint: Checkpoint | None) -> None:
        assert checkpoint, "without a checkpoint, the extraction leaves the state of this phase's start"
        training, unet = context.training, context.model.unet(context.dtype)
        prepare_adapter(unet, ranks_of(checkpoint.weights), training.rank, training.alpha)
        context.modules = {UNET: unet.to(context.distributed.device)}
        _add_text_encoders(context)
        context.start(self.steps)
        context.restore(checkpoint)

    def run(self, context: TrainingContext, interruption: Interruption, hooks: Sequence[Hook]) -> bool:
        return _train(context, interruption, hooks)


def _add_text_encoders(context: TrainingContext) -> None:
    """Load both text encoders with new adapters, if they are trained."""
    training = context.training
    if not training.text_encoder.train:
        return
    context.text_encoders = context.model.text_encoders(context.dtype)
    for name, model in zip(TEXT_ENCODERS, context.text_encoders, strict=True):
        context.modules[name] = model.encoder.to(context.distributed.device)
        add_adapter(model.encoder, name, training.rank, training.alpha, training.seed, kind=training.adapter)


@contextmanager
def one_at_a_time(distributed: PartialState) -> Iterator[None]:
    """Run the block in one process after another, so that the host holds one UNet in float32 at a time: 10 GB."""
    for _ in range(distributed.process_index):
        distributed.wait_for_everyone()
    yield
    for _ in range(distributed.process_index, distributed.num_processes):
        distributed.wait_for_everyone()


def _train(context: TrainingContext, interruption: Interruption, hooks: Sequence[Hook]) -> bool:
    # A signal takes effect after the current step, once its checkpoint is saved.
    with interruption.deferred():
        return train(context.state, lambda: interruption.asked, hooks)


def _round_frozen(unet: UNet2DConditionModel, dtype: torch.dtype) -> None:
    """Convert frozen parameters to the UNet's number format; trained parameters stay float32."""
    for parameter in unet.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
