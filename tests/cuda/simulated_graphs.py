"""CUDA graphs and streams of the simulated device.

A capture records the operators of a block with their tensors. As on a GPU, it leaves memory that existed before as it
was, reading a value back is an error, and a replay runs the same operators on the same memory.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FORBIDDEN = ("aten::_local_scalar_dense", "aten::nonzero", "aten::item")
"""Operators that read a value back to the CPU."""
REFUSALS: list[str] = []
"""Texts of the errors with which the next captures fail."""
POOLS: Counter[tuple[int, int]] = Counter()
"""Memory pools, with the number of graphs that use each one. Their memory is reserved."""
ALLOCATING: list[tuple[int, int]] = []
"""Pools that captures allocate from. As on a GPU, the cache is not freed meanwhile, and a failed capture stays here."""
MESSAGE = "CUDA error: operation not permitted when stream is capturing"
"""Message of the error that CUDA raises for an operator that a capture does not allow."""
FAILED = "CUDA error: operation failed due to a previous error during capture"
"""Message of the error that CUDA raises at the end of a capture in which an operator failed."""


_numbers = count(1)


class _Recorder(TorchDispatchMode):
    """Runs and records the operators of a block, and keeps the memory that they change as it was before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self._own: set[int] = set()
        """Addresses of the storages that were created in the block. Their content need not be restored."""
        self._kept: list[Tensor] = []
        """Keeps all tensors alive, as a graph's pool keeps their memory."""
        self._before: dict[int, bytes] = {}
        """Content of changed storages by their addresses."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func._schema.name in FORBIDDEN and any(tensor.is_cuda for tensor in inputs):
            raise RuntimeError(MESSAGE)
        if any(not tensor.is_cuda and tensor.dim() > 0 for tensor in inputs):
            raise RuntimeError(f"{MESSAGE}: a copy from the CPU's memory")
        if func._schema.is_mutable:
            for tensor in inputs:
                self._save(tensor)
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if any(not tensor.is_cuda for tensor in outputs) and any(tensor.is_cuda for tensor in inputs):
            raise RuntimeError(MESSAGE)
        known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        for tensor in outputs:
            if tensor.untyped_storage().data_ptr() not in known:
                self._own.add(tensor.untyped_storage().data_ptr())
        self._kept += outputs
        self.calls.append((func, args, kwargs, outputs))
        return result

    def _save(self, tensor: Tensor) -> None:
        """Copy a storage that existed before the capture, before it is changed for the first time."""
        storage = tensor.untyped_storage()
        pointer = storage.data_ptr()
        if tensor.is_cuda and pointer not in self._own and pointer not in self._before:
            self._before[pointer] = ctypes.string_at(pointer, storage.nbytes())
            self._kept.append(tensor)

    def undo(self) -> None:
        """Restore the memory that the operators changed: a capture records them without running them."""
        for pointer, content in self._before.items():
            ctypes.memmove(pointer, content, len(content))
        self._before.clear()


class CUDAGraph:
    """A recorded sequence of operators."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self._recorder: _Recorder | None = None
        """Keeps the memory of the recorded tensors."""
        self._pool: tuple[int, int] | None = None
        """Set by a capture that succeeded."""

    def __del__(self) -> None:
        if self._pool:
            release_pool(0, self._pool)

    @torch.no_grad()
    @torch.autocast("cuda", enabled=False)  # the casts of a capture are among its operators
    def replay(self) -> None:
        """Run the operators again, and copy their results to the memory that the recorded ones are in."""
        for func, args, kwargs, outputs in self.calls:
            result = func(*args, **kwargs)
            if func.is_view or func._schema.is_mutable:
                continue
            for old, new in zip(
                outputs, [x for x in tree_leaves(result) if isinstance(x, Tensor)], strict=True
            ):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


class graph:  # noqa: N801 - the name in torch.cuda
    """Context that records into a `CUDAGraph`."""

    def __init__(self, cuda_graph: CUDAGraph, pool: tuple[int, int]) -> None:
        self._graph = cuda_graph
        self._pool = pool
        self._recorder = _Recorder()

    def __enter__(self) -> None:
        assert POOLS[self._pool] or self._pool not in POOLS, "the pool has been released"
        POOLS[self._pool] += 1
        ALLOCATING.append(self._pool)
        self._recorder.__enter__()

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        self._recorder.__exit__(kind, value, trace)
        self._recorder.undo()
        if REFUSALS:
            raise RuntimeError(REFUSALS.pop())
        if kind:
            raise RuntimeError(FAILED)
        end_allocation(0, self._pool)
        self._graph._pool = self._pool
        self._graph.calls = self._recorder.calls
        self._graph._recorder = self._recorder


def new_pool() -> tuple[int, int]:
    """Return the name of a new pool."""
    return 0, next(_numbers)


def end_allocation(_: int, pool: tuple[int, int]) -> None:
    """End the allocation of a capture from its pool."""
    if pool not in ALLOCATING:
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
    ALLOCATING.remove(pool)


def release_pool(_: int, pool: tuple[int, int]) -> None:
    """Count one graph less that uses a pool."""
    POOLS[pool] -= 1


class Stream:
    """A stream on which everything is finished at once."""

    def wait_stream(self, stream: Stream) -> None: ...


class stream:  # noqa: N801 - the name in torch.cuda
    """Context that selects a stream, without effect."""

    def __init__(self, own: Stream) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


for _name, _value in {
    "CUDAGraph": CUDAGraph,
    "graph": graph,
    "Stream": Stream,
    "stream": stream,
    "current_stream": lambda *_: Stream(),
    "set_stream": lambda *_: None,
    "graph_pool_handle": new_pool,
}.items():
    setattr(torch.cuda, _name, _value)
torch._C._cuda_endAllocateToPool = end_allocation
torch._C._cuda_releasePool = release_pool
