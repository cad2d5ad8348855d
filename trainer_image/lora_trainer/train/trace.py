"""One step of a UNet and one picture of a VAE on tensors without data: the most that lives at once, and the sums.

Where `footprint` counts what is kept for the backward pass, here the passes are made, backward too, and every
tensor is seen to come and to go.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .footprint import Shape, empty_unet, predict_nothing


@dataclass(frozen=True)
class Trace:
    """What some work takes, beside the weights and their gradients."""

    peak: int
    """Bytes that live at once, at most."""
    operations: int
    """Floating-point operations of matrix products, convolutions and attention."""


def trace_step(folder: Path, shape: Shape) -> Trace:
    """The forward and the backward pass of a batch; only `unet/config.json` is read."""
    unet = empty_unet(folder, shape)
    if shape.checkpointing:
        unet.enable_gradient_checkpointing()
    with FakeTensorMode():
        watcher = _Watcher(_fake(unet, shape.dtype))
        with watcher:
            predict_nothing(unet, shape).float().square().mean().backward()
    return Trace(watcher.peak, watcher.operations)


def trace_pictures(folder: Path, resolution: int, dtype: torch.dtype) -> tuple[Trace, Trace]:
    """Encoding a picture, and decoding one; only `vae/config.json` is read."""
    config = AutoencoderKL.load_config(folder, subfolder="vae")
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(config).eval().requires_grad_(False)
    side = resolution // 8
    dtype = torch.float32 if vae.config.force_upcast else dtype
    with FakeTensorMode(), torch.no_grad():
        weights = _fake(vae, dtype)
        encoding, decoding = _Watcher(weights), _Watcher(weights)
        with encoding:
            vae.encode(torch.empty(1, 3, resolution, resolution, dtype=dtype))
        with decoding:
            vae.decode(torch.empty(1, vae.config.latent_channels, side, side, dtype=dtype))
    return Trace(encoding.peak, encoding.operations), Trace(decoding.peak, decoding.operations)


def _fake(module: Module, dtype: torch.dtype) -> list[Tensor]:
    """Give a module weights without data, and those that learn gradients; all of them."""
    found: list[Tensor] = []
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                learns = parameter.requires_grad
                data = torch.empty(parameter.shape, dtype=torch.float32 if learns else dtype)
                weight = part._parameters[name] = torch.nn.Parameter(data, requires_grad=learns)
                found.append(weight)
                if learns:
                    weight.grad = torch.empty_like(data)
                    found.append(weight.grad)
    return found


class _Watcher(TorchDispatchMode):
    """Sees every tensor that an operation makes, and when the last user of its storage is gone."""

    def __init__(self, own: list[Tensor]) -> None:
        """own is not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {tensor.untyped_storage()._cdata for tensor in own}
        self._live = self.peak = self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.operations += count(*args, **(kwargs or {}), out_val=found)
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return found

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._live += size
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size
