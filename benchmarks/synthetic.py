"""The trainer's state for random weights and random images, so that its loop runs without a model, images or a store."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState
from diffusers import DDPMScheduler

from lora_api.job import GradientCheckpointing, Training
from lora_trainer.train.context import TrainingContext
from lora_trainer.train.data.dataset import LATENT_SCALE
from lora_trainer.train.data.encode import Latent, TextEmbedding
from lora_trainer.train.data.streams import SampleStream
from lora_trainer.train.graphs import make_graphs
from lora_trainer.train.loop import TrainState
from lora_trainer.train.memory.workloads import TOKENS
from lora_trainer.train.model.adapter import UNET
from lora_trainer.train.optimizers import build_lr_scheduler, build_optimizer
from lora_trainer.train.validation import DTYPES

from .random_unet import build_unet

CAPTIONS = ("a photo of CUS statue", "a photo of CUS statue, side view")


def build_state(training: Training, folder: Path, device: str = "cuda") -> TrainState:
    """Build the state of a job that trains on two random images.

    Args:
        folder: see `build_unet`.
    """
    torch.manual_seed(0)
    unet, dtype = build_unet(training, folder, device), DTYPES[training.mixed_precision]
    generator = torch.Generator().manual_seed(0)
    side, config = training.resolution // LATENT_SCALE, unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, generator=generator)

    latents = [
        Latent(
            normal(config.in_channels, side, side),
            torch.zeros(config.in_channels, side, side),
            torch.zeros(6),
        )
        for _ in CAPTIONS
    ]
    embeddings = {
        caption: TextEmbedding(normal(TOKENS, config.cross_attention_dim).to(dtype), normal(pooled).to(dtype))
        for caption in CAPTIONS
    }
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    # `TrainingContext.start` reads nothing else of a job.
    job: dict[str, Any] = {
        "config": SimpleNamespace(spec=SimpleNamespace(training=training)),
        "model": SimpleNamespace(noise_scheduler=lambda: scheduler),
        "data": SimpleNamespace(streams=[SampleStream("instance", latents, CAPTIONS)], held_out=None),
        "previews": None,
    }
    context = TrainingContext(
        **job,
        distributed=PartialState(cpu=device == "cpu"),
        dtype=dtype,
        embeddings={"": embeddings[CAPTIONS[0]], **embeddings},
        folder=folder,
        gradient_checkpointing=training.gradient_checkpointing == GradientCheckpointing.ALWAYS,
        working_memory=0,
    )
    context.modules[UNET] = unet
    context.start(range(training.max_steps))
    return context.state


def restart(state: TrainState, training: Training, weights: torch.Tensor) -> None:
    """Begin again at the first step, with other settings that need no other modules.

    Args:
        weights: float32, (n,): what `state.flat.values` was before the first step.
    """
    if state.graphs:
        state.graphs.release()
    state.flat.use_float32()
    with torch.no_grad():
        state.flat.values.copy_(weights)
        state.flat.gradient.zero_()
    device = state.distributed.device
    state.training, state.records = training, []
    state.optimizer = build_optimizer(training, state.flat.named, state.flat)
    state.lr_scheduler = build_lr_scheduler(training, state.optimizer)
    state.scaler = torch.amp.GradScaler(device.type, enabled=state.dtype == torch.float16)
    state.graphs = make_graphs(training, device, state.flat, working_memory=0)
