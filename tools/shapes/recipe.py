"""The training loop of all parts of the base model. It can be resumed and averages the weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module

SAVE_EVERY = 250
"""Number of steps between checkpoints."""
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


def train_module(
    name: str, module: Module, loss_at: Callable[[int], Tensor], plan: Plan, folder: Path
) -> Module:
    """Train to the plan's last step, resuming from the checkpoint in the folder.

    Args:
        name: name of the checkpoint's file, without its suffix.
        loss_at: returns the loss of a step. It must depend on the step's number and the module alone, so that an
            interrupted run ends with the weights of an uninterrupted one.

    Returns:
        the module, with averaged weights if the plan has an `ema_decay`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt"
    optimizer = torch.optim.AdamW(module.parameters(), lr=plan.learning_rate, weight_decay=0.01, fused=True)
    average = {key: value.detach().clone() for key, value in module.state_dict().items()}
    first_step = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        average, first_step = saved["average"], saved["step"]
    module.train()
    total, last_report = 0.0, time.monotonic()
    for step in range(first_step, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate_at(step)
        loss = loss_at(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(plan.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, value in module.state_dict().items():
                average[key].lerp_(value, 1 - decay) if value.is_floating_point() else average[key].copy_(
                    value
                )
        total += loss.item()
        if (step + 1) % REPORT_EVERY == 0:
            seconds = (time.monotonic() - last_report) / REPORT_EVERY
            print(
                f"{name} {step + 1}/{plan.steps} loss {total / REPORT_EVERY:.4f} {seconds:.2f} s/step",
                flush=True,
            )
            total, last_report = 0.0, time.monotonic()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == plan.steps:
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            torch.save({**state, "step": step + 1}, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
    module.load_state_dict(average)
    return module.eval()
