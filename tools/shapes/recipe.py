"""The training loop of all parts of the base model. It can be resumed and averages the weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

SAVE_EVERY = 250
"""Smallest number of steps between checkpoints."""
REPORT_EVERY = 50
"""Number of steps between lines of output."""


@dataclass(frozen=True)
class Plan:
    """Length and learning rate of a training."""

    steps: int
    learning_rate: float
    """Peak learning rate of AdamW."""
    warmup_steps: int
    """Number of steps in which the learning rate rises from 0, at the beginning."""
    decay_share: float
    """Share of the steps in which the learning rate falls to 0, at the end."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights; 0: no average."""

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        rising = (step + 1) / self.warmup_steps
        falling = (self.steps - step) / (self.decay_share * self.steps) if self.decay_share else 1.0
        return self.learning_rate * min(1.0, rising, falling)


Batch = dict[str, Tensor]


def train_module(
    name: str,
    module: Module,
    batch_at: Callable[[int], Batch],
    loss_of: Callable[[Batch], Tensor],
    plan: Plan,
    folder: Path,
) -> Module:
    """Train to the plan's last step, resuming from the checkpoint in the folder.

    On a GPU, steps run as a CUDA graph, because the models are so small that launches would take most of the time.

    Args:
        name: name of the checkpoint's file, without its suffix.
        module: the module to train, on the device to train on.
        batch_at: returns the samples of a step, on that device. They must depend on the step's number alone, so that an
            interrupted run ends with the weights of an uninterrupted one.
        loss_of: returns the loss of samples.

    Returns:
        the module, with averaged weights if the plan has an `ema_decay`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt"
    module.train()
    update = _Update(module, loss_of, plan)
    first_step = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        update.load_state_dict(saved["state"])
        first_step = saved["step"]
    run = _GraphedUpdate(update) if update.decay.is_cuda else update
    total, last_report = torch.zeros((), device=update.decay.device), time.monotonic()
    save_every = max(SAVE_EVERY, plan.steps // 20)
    for step in range(first_step, plan.steps):
        update.set_rates(step)
        total = total + run(batch_at(step))
        if (step + 1) % REPORT_EVERY == 0:
            loss = float(total) / REPORT_EVERY
            seconds = (time.monotonic() - last_report) / REPORT_EVERY
            print(f"{name} {step + 1}/{plan.steps} loss {loss:.4f} {seconds:.4f} s/step", flush=True)
            total, last_report = torch.zeros_like(total), time.monotonic()
        if (step + 1) % save_every == 0 or step + 1 == plan.steps:
            torch.save({"state": update.state_dict(), "step": step + 1}, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
    module.load_state_dict(update.average)
    return module.eval()


class _Update:
    """A step of AdamW and of the average of the weights. Its rates are tensors, which a CUDA graph reads anew."""

    def __init__(self, module: Module, loss_of: Callable[[Batch], Tensor], plan: Plan) -> None:
        self._module, self._loss_of, self._plan = module, loss_of, plan
        device = next(module.parameters()).device
        self.average = {key: value.detach().clone() for key, value in module.state_dict().items()}
        self.decay = torch.zeros((), device=device)
        self._optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=torch.tensor(plan.learning_rate, device=device),
            weight_decay=0.01,
            fused=True,
            capturable=device.type == "cuda",
        )

    def set_rates(self, step: int) -> None:
        """Set the learning rate and the decay of the average for a step."""
        self._optimizer.param_groups[0]["lr"].fill_(self._plan.learning_rate_at(step))
        self.decay.fill_(min(self._plan.ema_decay, (1 + step) / (10 + step)))

    def __call__(self, batch: Batch) -> Tensor:
        """Change the weights, and return the loss."""
        loss = self._loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._module.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            for key, value in self._module.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1 - self.decay)
                else:
                    self.average[key].copy_(value)
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        return {
            "module": self._module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self.average,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]


class _GraphedUpdate:
    """Updates that are replays of a CUDA graph, after some eager ones that prepare the libraries."""

    EAGER = 3

    def __init__(self, update: _Update) -> None:
        self._update, self._eager = update, 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch = {}
        self._loss = torch.empty(0)

    def __call__(self, batch: Batch) -> Tensor:
        if self._eager < self.EAGER:
            self._eager += 1
            stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                loss = self._update(batch)
            current.wait_stream(stream)
            return loss
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            self._batch = {name: value.clone() for name, value in batch.items()}
            with torch.cuda.graph(self._graph):
                self._loss = self._update(self._batch)
        for name, value in batch.items():
            self._batch[name].copy_(value)
        self._graph.replay()
        return self._loss.clone()
