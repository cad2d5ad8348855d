"""Traces of the cost of tensor operations: peak memory, number of operations, and memory traffic.

The operations run on fake tensors, which have shapes and types but no data. So a step of SDXL at full size is traced in
seconds on any machine.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

COPY = "aten::_to_copy"


@dataclass(frozen=True)
class Trace:
    """The cost of traced operations."""

    peak: int
    """Peak of the memory of live tensors, in bytes, without weights and their gradients."""
    flops: int
    """Floating-point operations of matrix products, convolutions and attention."""
    operations: int
    """Number of calls that run at least one kernel on a GPU; views and queries are not counted."""
    copies: int
    """Number of these calls that only change a tensor's type or device (`_to_copy`)."""
    traffic: int
    """Bytes of all operands and results, which is the memory traffic if nothing stays in a cache."""


def fake_weights(module: Module, dtype: torch.dtype) -> list[Tensor]:
    """Replace a module's parameters and buffers by tensors without data. Call it under `FakeTensorMode`.

    Frozen parameters get `dtype`; trainable ones stay float32.

    Returns:
        All new tensors, which are passed to `Tracer` as tensors not to count.
    """
    tensors: list[Tensor] = []
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            trained = parameter.requires_grad
            data = torch.empty(parameter.shape, dtype=torch.float32 if trained else dtype)
            weight = part._parameters[name] = Parameter(data, requires_grad=trained)
            tensors.append(weight)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                tensors.append(torch.zeros(buffer.shape, dtype=buffer.dtype))
                part._buffers[name] = tensors[-1]
    return tensors


class Tracer(TorchDispatchMode):
    """Counts the operations within its context, and the bytes of storages from creation to release."""

    def __init__(self, uncounted: list[Tensor]) -> None:
        """
        Args:
            uncounted: tensors whose memory is not counted.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {tensor.untyped_storage()._cdata for tensor in uncounted}
        self._live = self._peak = self._flops = self._operations = self._copies = self._traffic = 0

    @property
    def trace(self) -> Trace:
        return Trace(self._peak, self._flops, self._operations, self._copies, self._traffic)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if count := _flop_counter(func):
            self._flops += count(*args, **kwargs, out_val=result)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if _runs_kernel(func, inputs, outputs):
            self._operations += 1
            self._copies += func._schema.name == COPY
            self._traffic += sum(map(_bytes, inputs)) + sum(map(_bytes, outputs))
        for tensor in outputs:
            self._track(tensor.untyped_storage())
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        """Count a storage as live until it is released, unless it is known already."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._live += size
            self._peak = max(self._peak, self._live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


def _flop_counter(func: Any) -> Any:
    """Return the function that counts an operator's floating-point operations; None if there is none.

    torch's registry lacks in-place operators and CPU variants, so these are looked up by their usual names.
    """
    name = func._schema.name.removeprefix("aten::")
    name = name.removesuffix("_for_cpu").replace("_for_cpu_backward", "_backward")
    if name == "addmm_":
        name = "addmm"
    packet = getattr(torch.ops.aten, name, None) if func.namespace == "aten" else None
    return flop_registry.get(packet)


def _runs_kernel(func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Return whether a call reads or writes memory. Views, allocations and queries do not."""
    if not outputs or func.is_view:
        return False
    if func._schema.name in (
        "aten::detach",
        "aten::empty",
        "aten::empty_like",
        "aten::new_empty",
        "aten::empty_strided",
    ):
        return False
    storages = {tensor.untyped_storage()._cdata for tensor in inputs}
    is_alias = all(tensor.untyped_storage()._cdata in storages for tensor in outputs)
    return not is_alias or func._schema.is_mutable


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
