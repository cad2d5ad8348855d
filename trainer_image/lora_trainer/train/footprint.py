"""What a UNet's training step keeps in memory, counted on tensors without data before any weight is loaded."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import diffusers
import peft
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lora_api.job import Adapter

from .adapter import UNET, add_adapter, trainable
from .extract import make_trainable
from .fused import fuse
from .lean import make_lean

CHECKPOINTED = ("BasicTransformerBlock", "ResnetBlock2D")
"""What diffusers' gradient checkpointing recomputes one at a time."""
TOKENS = 77
PLAIN = Adapter()
CACHE_VERSION = 4


@dataclass(frozen=True)
class Footprint:
    """What a training step of one batch needs."""

    frozen: int
    """Elements of the base model."""
    trained: int
    """Elements that learn."""
    activations: int
    """Bytes kept for the backward pass. With gradient checkpointing: the inputs of all blocks, and what the
    largest keeps when it is recomputed."""


@dataclass(frozen=True)
class Shape:
    """All that a footprint depends on, but for the model."""

    rank: int | None
    """Of the adapter; None fine-tunes the UNet itself, as `extract.make_trainable` says."""
    resolution: int
    batch_size: int
    dtype: torch.dtype
    checkpointing: bool
    kind: Adapter = PLAIN
    convolutions: bool = False
    """Of a fine-tuned UNet, whether its convolutions learn too."""


def footprint(folder: Path, shape: Shape, cache: Path) -> Footprint:
    """Measure a pipeline's UNet, of which only `unet/config.json` is read; seconds for SDXL, unless it is cached.

    Shapes are traced as a CPU would run them, where attention is fused as on a GPU.
    """
    config = (folder / "unet" / "config.json").read_text()
    text = f"{CACHE_VERSION} {torch.__version__} {diffusers.__version__} {peft.__version__} {shape} {config}"
    path = cache / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    try:
        return Footprint(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        found = _measure(folder, shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(json.dumps(asdict(found)))
    partial.replace(path)
    return found


def empty_unet(folder: Path, shape: Shape) -> UNet2DConditionModel:
    """A pipeline's UNet as it trains, without weights."""
    config = UNet2DConditionModel.load_config(folder, subfolder="unet")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
        if shape.rank is None:
            make_trainable(unet, shape.convolutions)
        else:
            add_adapter(unet, UNET, shape.rank, shape.rank, seed=None, kind=shape.kind)
            fuse(unet)
    make_lean(unet)
    return unet.train()


def predict_nothing(unet: UNet2DConditionModel, shape: Shape) -> Tensor:
    """The forward pass of a batch of tensors without data."""
    side, batch, dtype = shape.resolution // 8, shape.batch_size, shape.dtype
    text, ids = unet.config.cross_attention_dim, unet.config.addition_time_embed_dim
    pooled = unet.config.projection_class_embeddings_input_dim - 6 * ids
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found: Tensor = unet(
            torch.empty(batch, unet.config.in_channels, side, side, dtype=dtype),
            torch.zeros(batch, dtype=torch.long),
            torch.empty(batch, TOKENS, text, dtype=dtype),
            added_cond_kwargs={
                "text_embeds": torch.empty(batch, pooled, dtype=dtype),
                "time_ids": torch.empty(batch, 6),
            },
        ).sample
    return found


def _measure(folder: Path, shape: Shape) -> Footprint:
    unet = empty_unet(folder, shape)
    trained = sum(p.numel() for p in trainable({UNET: unet}).values())
    frozen = sum(p.numel() for p in unet.parameters()) - trained
    with FakeTensorMode():
        _make_fake(unet, shape.dtype)
        kept, largest = _trace(unet, shape)
        if shape.checkpointing:
            unet.enable_gradient_checkpointing()
            inputs, _ = _trace(unet, shape)
            kept = inputs + largest
    return Footprint(frozen, trained, kept)


def _make_fake(unet: UNet2DConditionModel, dtype: torch.dtype) -> None:
    for module in unet.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=torch.float32 if parameter.requires_grad else dtype)
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=parameter.requires_grad)


def _trace(unet: UNet2DConditionModel, shape: Shape) -> tuple[int, int]:
    """Bytes that a forward pass keeps: in all, and in the one checkpointed block that keeps most."""
    own = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}
    total = largest = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in kept:
            kept[storage._cdata] = storage  # held, so that no other takes its address
            total += storage.nbytes()
        return tensor

    begun: list[int] = []

    def enter(*_: object) -> None:
        begun.append(total)

    def leave(*_: object) -> None:
        nonlocal largest
        largest = max(largest, total - begun.pop())

    hooks = []
    for module in unet.modules():
        if type(module).__name__ in CHECKPOINTED:
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        predict_nothing(unet, shape)
    for hook in hooks:
        hook.remove()
    return total, largest
