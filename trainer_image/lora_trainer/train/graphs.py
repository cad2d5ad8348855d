"""Forward and backward passes as CUDA graphs.

The CPU launches thousands of kernels for a pass, and a fast GPU waits for them. A CUDA graph records the kernels of a
pass once and launches all of them together. A replay runs the same kernels on the same memory, so that the losses are
those of eager passes.

A graph reads its batch from fixed tensors, and is valid for one set of shapes. Its working memory stays reserved until
`release`.
"""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from lora_api.job import Compile, Training

from .model.flat_parameters import FlatParameters
from .objective import Batch

log = logging.getLogger(__name__)
EAGER_PASSES = 2
"""Eager passes with a set of shapes before a capture. The second one is measured."""
WARM_UP = 3
"""Passes on a stream of their own before a capture, which PyTorch requires."""
REPAID_AFTER = 50
"""Replays that must be left for a capture with `Auto`. A capture takes as long as about five eager passes, and each
replay saves at least a tenth of one where the CPU limits the speed."""
LAUNCH_BOUND = 0.9
"""Share of a pass's time in which the CPU launches kernels, from which `Auto` captures: below it, the GPU is the limit."""
SPARE = 2
"""Working memories of a pass that must be free for a capture with `Auto`: one for the graph, one for eager passes."""
MAX_GRAPHS = 8
"""Number of graphs. Each set of shapes needs one; further ones run eagerly."""
Work = Callable[[Batch], Tensor]
"""Runs the forward and backward pass of a batch, collects its gradients, and returns its loss: float32, ()."""
_FAILED: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture failed. PyTorch's allocator of pinned memory keeps calling them, so they must not be freed."""


def unsupported(training: Training, device: torch.device) -> str:
    """Return why a job's passes cannot be captured; empty if they can."""
    if device.type != "cuda":
        return "the job trains on a CPU"
    if training.text_encoder.train:
        return "the text encoders are trained"
    if training.token_embeddings.train:
        return "token embeddings are trained"
    if training.adapter.rank_dropout:
        return "rank dropout draws its masks on the CPU"
    return ""


def make_graphs(
    training: Training, device: torch.device, flat: FlatParameters, working_memory: int
) -> PassGraphs | None:
    """Return the graphs of a job, or None where `training.compile` or the job excludes them.

    Args:
        working_memory: bytes that a pass needs beside the weights and what is kept between steps.
    """
    reason = unsupported(training, device)
    if training.compile == Compile.NEVER or reason:
        if reason and device.type == "cuda":
            log.info("passes run without CUDA graphs: %s", reason)
        return None
    return PassGraphs(training.compile, flat, working_memory)


class PassGraphs:
    """Runs passes, as CUDA graphs where this is possible and, with `Auto`, where it repays the capture."""

    def __init__(self, mode: Compile, flat: FlatParameters, working_memory: int) -> None:
        """
        Args:
            mode: `Auto` or `Always`.
            working_memory: see `make_graphs`.
        """
        self._mode = mode
        self._flat = flat
        self._working_memory = working_memory
        self._graphs: dict[object, _Graph] = {}
        self._passes: Counter[object] = Counter()
        self._excluded: set[object] = set()
        self._pool: Any = None
        self.captures = 0
        """Number of captures so far."""
        self.replays = 0
        """Number of replays so far."""

    def run(self, batch: Batch, work: Work, *, remaining: int, is_first: bool) -> Tensor:
        """Run a pass and return its loss.

        Args:
            work: the same function of the batch in every call.
            remaining: passes that are left in this phase, of all shapes, this one included.
            is_first: whether no gradient was collected in this step before. Only then is a graph captured, because
                the passes before a capture change the gradient.
        """
        key = _signature(batch)
        self._passes[key] += 1
        graph = self._graphs.get(key)
        if graph is None and is_first and self._is_worthwhile(key, batch, work, remaining):
            graph = self._capture(key, batch, work)
        if graph is not None:
            self.replays += 1
            return graph.replay(batch)
        if self._mode == Compile.AUTO and key not in self._excluded and self._passes[key] == EAGER_PASSES:
            return self._measure(key, batch, work)
        return work(batch)

    def release(self) -> None:
        """Free the memory of all graphs. They are captured again when they are needed."""
        if self._graphs:
            torch.cuda.synchronize()
            self._graphs.clear()
            self._pool = None
            gc.collect()
            torch.cuda.empty_cache()

    def _is_worthwhile(self, key: object, batch: Batch, work: Work, remaining: int) -> bool:
        """Return whether to capture a pass of these shapes now."""
        if key in self._excluded or self._passes[key] <= EAGER_PASSES or len(self._graphs) >= MAX_GRAPHS:
            return False
        if self._mode == Compile.ALWAYS:
            return True
        share = self._passes[key] / self._passes.total()
        return remaining * share >= REPAID_AFTER

    def _measure(self, key: object, batch: Batch, work: Work) -> Tensor:
        """Run an eager pass, and exclude its shapes from captures if the GPU is slower than the CPU or its memory small."""
        torch.cuda.synchronize()
        started = time.perf_counter()
        loss = work(batch)
        launched = time.perf_counter()
        torch.cuda.synchronize()
        ended = time.perf_counter()
        share = (launched - started) / (ended - started)
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        free = torch.cuda.mem_get_info()[0] + cached
        if share < LAUNCH_BOUND:
            self._exclude(key, batch, f"the GPU limits the speed: launches take {share:.0%} of a pass")
        elif free < SPARE * self._working_memory:
            self._exclude(key, batch, "there is not enough free memory for them")
        return loss

    def _capture(self, key: object, batch: Batch, work: Work) -> _Graph | None:
        """Capture a pass; None if that fails, for whatever reason, since eager passes are always possible."""
        stream = torch.cuda.current_stream()
        started = time.perf_counter()
        cuda_graph, graph = torch.cuda.CUDAGraph(), None
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            graph = _Graph(batch, work, cuda_graph, self._pool)
        except Exception as error:
            # A failed capture leaves its own stream as the current one.
            torch.cuda.set_stream(stream)
            self._exclude(key, batch, f"the capture failed: {_first_line(error)}")
            error.__traceback__ = None  # it refers to tensors of the failed capture
        # The passes of the warm-up have changed the gradient, which was zero.
        self._flat.gradient.zero_()
        if graph is None:
            self._flat.discard()
            _free_failed(cuda_graph, self._pool)
            if not self._graphs:
                self._pool = None  # PyTorch does not accept a pool again that no graph uses
            return None
        self._graphs[key] = graph
        self.captures += 1
        log.info(
            "passes of %s run as a CUDA graph, captured in %.1f s",
            _describe(batch),
            time.perf_counter() - started,
        )
        return graph

    def _exclude(self, key: object, batch: Batch, reason: str) -> None:
        self._excluded.add(key)
        log.info("passes of %s run without a CUDA graph: %s", _describe(batch), reason)


class _Graph:
    """A captured pass."""

    def __init__(self, batch: Batch, work: Work, graph: torch.cuda.CUDAGraph, pool: Any) -> None:
        """Run the warm-up, which changes the gradient, and capture the pass, which does not run it.

        Args:
            graph: an empty graph.
            pool: its memory pool. Graphs that never run at the same time can share one.
        """
        copies: dict[str, Any] = {name: tensor.clone() for name, tensor in _tensors(batch).items()}
        self._batch = replace(batch, **copies)
        self._loss = torch.zeros((), device=batch.latents.device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                # Casts that autocast keeps from one pass would be missing in the graph.
                torch.clear_autocast_cache()
                work(self._batch)
        torch.cuda.current_stream().wait_stream(stream)
        torch.clear_autocast_cache()
        self._graph = graph
        try:
            with torch.cuda.graph(self._graph, pool=pool):
                self._loss.copy_(work(self._batch))
        finally:
            torch.clear_autocast_cache()

    def replay(self, batch: Batch) -> Tensor:
        for name, tensor in _tensors(batch).items():
            getattr(self._batch, name).copy_(tensor)
        self._graph.replay()
        return self._loss


def _free_failed(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Free the memory of a failed capture.

    PyTorch ends the allocation from a graph's pool only where the capture succeeds. Without this, the pool would stay
    reserved, and the allocator would no longer free its cache when the memory is full.
    """
    _FAILED.append(graph)
    device = torch.cuda.current_device()
    with suppress(RuntimeError):  # the capture had not begun
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    gc.collect()
    torch.cuda.empty_cache()


def _tensors(batch: Batch) -> dict[str, Tensor]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _signature(batch: Batch) -> tuple[object, ...]:
    """Return what a graph depends on: shapes and types of a batch, and whether it has a mask."""
    return tuple((name, *tensor.shape, tensor.dtype) for name, tensor in _tensors(batch).items())


def _describe(batch: Batch) -> str:
    count, _, height, width = batch.latents.shape
    return f"{count} image(s) of {8 * width}x{8 * height} px"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
