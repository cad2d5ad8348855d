"""What a UNet's training step keeps in memory, counted on tensors without data before any weight is loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from .adapter import UNET, add_adapter, trainable
from .extract import make_trainable

CHECKPOINTED = ("BasicTransformerBlock", "ResnetBlock2D")
"""What diffusers' gradient checkpointing recomputes one at a time."""
TOKENS = 77


class Footprint:
    """A pipeline's UNet with an adapter, to be measured. Only `unet/config.json` is read.

    Shapes are traced as a CPU would run them, where attention is fused as on a GPU.
    """

    def __init__(self, folder: Path, rank: int | None, dtype: torch.dtype) -> None:
        """rank: of the adapter; None fine-tunes the UNet itself, as `extract.make_trainable` says."""
        config = UNet2DConditionModel.load_config(folder, subfolder="unet")
        with torch.device("meta"):
            self._unet = UNet2DConditionModel.from_config(config)
            if rank is None:
                make_trainable(self._unet)
            else:
                add_adapter(self._unet, UNET, rank, rank, seed=None)
        self._unet.train()
        self._dtype = dtype
        self.trained = sum(p.numel() for p in trainable({UNET: self._unet}).values())
        """Elements that learn."""
        self.frozen = sum(p.numel() for p in self._unet.parameters()) - self.trained
        """Elements of the base model."""
        self._mode = FakeTensorMode()
        with self._mode:
            _make_fake(self._unet, dtype)

    def activations(self, resolution: int, batch_size: int, checkpointing: bool) -> int:
        """Bytes that a batch keeps for the backward pass.

        With gradient checkpointing: the inputs of all blocks, and what the largest keeps when it is recomputed.
        """
        with self._mode:
            if checkpointing:
                self._unet.enable_gradient_checkpointing()
            kept, _ = _trace(self._unet, resolution // 8, batch_size, self._dtype)
            if checkpointing:
                self._unet.disable_gradient_checkpointing()
                _, largest = _trace(self._unet, resolution // 8, batch_size, self._dtype)
                kept += largest
        return kept


def _make_fake(unet: UNet2DConditionModel, dtype: torch.dtype) -> None:
    for module in unet.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=torch.float32 if parameter.requires_grad else dtype)
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=parameter.requires_grad)


def _trace(unet: UNet2DConditionModel, side: int, batch: int, dtype: torch.dtype) -> tuple[int, int]:
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
    text, ids = unet.config.cross_attention_dim, unet.config.addition_time_embed_dim
    pooled = unet.config.projection_class_embeddings_input_dim - 6 * ids
    autocast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        unet(
            torch.empty(batch, unet.config.in_channels, side, side, dtype=dtype),
            torch.zeros(batch, dtype=torch.long),
            torch.empty(batch, TOKENS, text, dtype=dtype),
            added_cond_kwargs={
                "text_embeds": torch.empty(batch, pooled, dtype=dtype),
                "time_ids": torch.empty(batch, 6),
            },
        )
    for hook in hooks:
        hook.remove()
    return total, largest
