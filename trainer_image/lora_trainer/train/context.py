"""The context of a job, which its phases and hooks share."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from accelerate import PartialState
from torch import Tensor
from torch.nn import Module

from lora_api.job import Training
from lora_api.stages import TrainConfig

from ..errors import BadConfigurationError
from .checkpoint import Checkpoint
from .data.encode import TextEmbedding, encode_text
from .data.training_data import TrainingData
from .ema import EMA
from .finite import DivergedError, divergence_advice, quote
from .graphs import make_graphs
from .loop import TrainState
from .memory.errors import is_out_of_memory
from .model.adapter import UNET, has_effect, is_adapted, trainable, without_adapter
from .model.base_model import BaseModel, TextEncoderModel
from .model.flat_parameters import FlatParameters
from .model.precision import compute_dtype
from .model.token_embeddings import TokenEmbeddings, steps_of
from .optimizers import (
    build_lr_scheduler,
    build_optimizer,
    optimizer_state,
    parameter_groups,
    restore_optimizer,
)
from .overrides.checkpointing import enable_checkpointing
from .overrides.fused import fuse
from .overrides.memory_efficient import make_memory_efficient
from .rank_dropout import RankDropout
from .records import Record
from .sampling.generate import ImageGenerator
from .sampling.previews import Previews
from .scoring import Scorer, Scores

log = logging.getLogger(__name__)


@dataclass
class TrainingContext:
    """A job's model, data and train state on this process."""

    config: TrainConfig
    distributed: PartialState
    dtype: torch.dtype
    """Number format of the frozen base model."""
    model: BaseModel
    data: TrainingData
    embeddings: dict[str, TextEmbedding]
    """Embeddings by text; empty where the text encoders or token embeddings are trained."""
    previews: Previews
    folder: Path
    """Local folder of the attempt's files."""
    gradient_checkpointing: bool
    working_memory: int
    """Bytes that the forward and backward pass of a batch need beside the weights, by the memory plan."""
    text_encoders: tuple[TextEncoderModel, TextEncoderModel] | None = None
    """Both text encoders; None where they are not trained."""
    token_embeddings: TokenEmbeddings | None = None
    """The new tokens and both text encoders; None where no token embeddings are trained."""
    modules: dict[str, Any] = field(default_factory=dict)
    """The modules that are trained or have an adapter, by their names in the pipeline."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the best step by parameter name: float32, on the CPU; empty where the last step is published."""
    layers: dict[str, object] | None = None
    """Result of `extract.report`; None until an adapter is extracted."""
    initial_adapter: Path | None = None
    """File of the adapter that training starts from."""
    scorer: Scorer | None = None
    """Scorer of generated images; None where the job does not measure scores."""
    base_scores: Scores | None = None
    """Scores of the base model, once they are measured."""
    _state: TrainState | None = None
    _overridden: WeakSet[Module] = field(default_factory=WeakSet)
    """Modules whose layers have efficient forward passes."""

    @property
    def training(self) -> Training:
        return self.config.spec.training

    @property
    def state(self) -> TrainState:
        assert self._state is not None, "no phase has begun"
        return self._state

    def embed(self, text: str) -> TextEmbedding:
        """Encode a text with the trained text encoders or token embeddings, or return its stored embedding."""
        if self.token_embeddings:
            # Without a gradient, which costs a backward pass, once the embeddings are no longer trained.
            is_trained = self.state.step < steps_of(self.training)
            with nullcontext() if is_trained else torch.no_grad():
                return self.token_embeddings.encode(text)
        return encode_text(self.text_encoders, text) if self.text_encoders else self.embeddings[text]

    def warn_of_long_captions(self) -> None:
        """Warn of captions that are too long for the text encoders with the new tokens."""
        if self.token_embeddings and (cut := self.token_embeddings.too_long(self.data.captions)):
            log.warning(
                "with the new tokens, the text encoders do not see the end of %d captions, such as %s: shorten them, or "
                "lower training.tokenEmbeddings.tokens",
                len(cut),
                quote(cut[0]),
            )

    @contextmanager
    def as_base_model(self) -> Iterator[None]:
        """Disable the adapters and the new tokens within the block."""
        with (
            without_adapter(self.modules),
            self.token_embeddings.without() if self.token_embeddings else nullcontext(),
        ):
            yield

    def start(self, steps: range) -> None:
        """Build the optimizer, the learning-rate scheduler and the rest of the state for the trainable parameters.

        Args:
            steps: the job's steps in which these parameters are trained, counted from 0.
        """
        training, unet = self.training, self.modules[UNET]
        if self.gradient_checkpointing:
            enable_checkpointing(unet)
        unet.train()
        rank_dropout = None
        if training.adapter.rank_dropout:
            rank_dropout = RankDropout(unet, float(training.adapter.rank_dropout), training.seed)
        encoders = [each.encoder for each in self.token_embeddings.models] if self.token_embeddings else []
        for module in [*self.modules.values(), *encoders]:
            # Text encoders keep their overrides from the phase before.
            if module not in self._overridden:
                # After the rank dropout: both calls skip layers with hooks.
                fuse(module)
                make_memory_efficient(module)
                self._overridden.add(module)
        parameters = trainable(self.modules)
        if self.token_embeddings:
            parameters |= self.token_embeddings.parameters()
        groups = [group["params"] for group in parameter_groups(training, parameters)]
        flat = FlatParameters(parameters, groups, compute_dtype(training.adapter, self.dtype))
        optimizer = build_optimizer(training, flat.named, flat)
        self._state = TrainState(
            distributed=self.distributed,
            training=training,
            unet=unet,
            noise_scheduler=self.model.noise_scheduler(),
            streams=self.data.streams,
            embed=self.embed,
            flat=flat,
            optimizer=optimizer,
            lr_scheduler=build_lr_scheduler(training, optimizer),
            scaler=torch.amp.GradScaler(self.distributed.device.type, enabled=self.dtype == torch.float16),
            dtype=self.dtype,
            steps=steps,
            ema=EMA(flat.named, float(training.ema_decay)) if training.ema_decay else None,
            held_out=self.data.held_out,
            token_embeddings=self.token_embeddings,
            rank_dropout=rank_dropout,
            graphs=make_graphs(training, self.distributed.device, flat, self.working_memory),
        )

    def release(self) -> None:
        """Drop the state, the best weights and the UNet, to free their memory for another UNet.

        Text encoders that are trained stay, with their adapters.
        """
        del self.modules[UNET]
        self.state.flat.release(trainable(self.modules).values())
        self._state = None
        self.best = {}

    def discard(self) -> None:
        """Drop the state and all modules, to free their memory for another variant."""
        if self._state:
            self.release_graphs()
        self._state = None
        self.text_encoders = None
        self.token_embeddings = None
        self.modules, self.best = {}, {}
        gc.collect()
        if self.distributed.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def select_published_weights(self) -> None:
        """Set the parameters to the weights to publish: those of the best step, or `state.result`.

        Raises:
            DivergedError: if they are not finite.
            BadConfigurationError: if they are an adapter that changes nothing.
        """
        self.state.flat.use_float32()
        for name, value in (self.best or self.state.result).items():
            self.state.parameters[name].copy_(value)
        if not self.state.is_sound():
            place = "the trained weight"
            raise DivergedError(
                f"{place} is not finite after step {self.state.step}: {divergence_advice(place, self.dtype)}"
            )
        if is_adapted(self.modules[UNET]) and not has_effect(self.modules):
            raise BadConfigurationError(
                f"training has changed nothing in {self.state.step} steps: the loss had no gradient, or "
                f"training.learningRate ({self.training.learning_rate}) is too small for float32"
            )

    def release_optimizer(self) -> None:
        """Drop the optimizer's states after the last step, to free their memory for the previews."""
        self.release_graphs()
        self.state.optimizer.state.clear()
        if self.distributed.device.type == "cuda":
            torch.cuda.empty_cache()

    def release_graphs(self) -> None:
        """Free the memory of CUDA graphs, before images are generated."""
        if self.state.graphs:
            self.state.graphs.release()

    def generate_previews(self, *, with_base: bool) -> None:
        """Generate the previews of this step, unless the GPU's memory is too small.

        Training continues without them: the weights are more than a preview, and another attempt would fail in the
        same way.

        Args:
            with_base: whether to generate the base previews too; the modules then hold the weights to publish. Otherwise
                the previews show `state.result`.
        """
        self.release_graphs()
        flat = self.state.flat
        # peft converts a float32 adapter to the number format of its layer. A fine-tuned UNet has no adapter: its own
        # weights must have the number format of the layers that are not trained.
        if is_adapted(self.modules[UNET]):
            flat.use_float32()
        else:
            flat.use_compute_copy()
        try:
            with nullcontext() if with_base else self.state.swapped_result():
                self.previews.generate(
                    self.folder,
                    self.state.step,
                    ImageGenerator(self.model, self.modules[UNET]),
                    self.embed,
                    self.as_base_model if with_base else None,
                )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning(
                "previews of step %d are missing: the GPU's memory is full: %s", self.state.step, error
            )
            error.__traceback__ = None  # it refers to the tensors of the failed preview

    def checkpoint(self) -> Checkpoint:
        """Collect the state that a later run needs to continue from this step."""
        state = self.state
        optimizer, optimizer_scalars = optimizer_state(state.optimizer)
        return Checkpoint(
            step=state.step,
            weights={name: parameter.detach() for name, parameter in state.parameters.items()},
            best=self.best,
            ema=state.ema.shadow if state.ema else {},
            optimizer=optimizer,
            state={
                "optimizer": optimizer_scalars,
                "lr_scheduler": state.lr_scheduler.state_dict(),
                "scaler": state.scaler.state_dict(),
                "records": [asdict(record) for record in state.records],
                "previews": self.previews.state(),
                "layers": self.layers,
            },
        )

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint into the current state, which must have the same parameters."""
        state = self.state
        for name, parameter in state.parameters.items():
            parameter.copy_(checkpoint.weights[name])
            if state.ema:
                state.ema.shadow[name].copy_(checkpoint.ema[name])
        self.best = checkpoint.best
        self.layers = checkpoint.state["layers"]
        restore_optimizer(state.optimizer, checkpoint.optimizer, checkpoint.state["optimizer"])
        state.lr_scheduler.load_state_dict(checkpoint.state["lr_scheduler"])
        state.scaler.load_state_dict(checkpoint.state["scaler"])
        state.records = [Record(**record) for record in checkpoint.state["records"]]
        self.previews.restore(checkpoint.state["previews"])
