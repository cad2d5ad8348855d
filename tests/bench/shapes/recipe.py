"""One way to train every part: seeded step by step, resumable, with an average of the weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module

SAVE_EVERY = 250
REPORT_EVERY = 50


@dataclass(frozen=True)
class Plan:
    """How long and how fast."""

    steps: int
    rate: float
    """Of AdamW; it rises over the first `rise` steps and falls over the last share of them, `fall`."""
    rise: int
    fall: float
    average: float = 0.0
    """Decay of the exponential average of the weights; 0: none is kept."""

    def rate_at(self, step: int) -> float:
        rising = (step + 1) / self.rise
        falling = (self.steps - step) / (self.fall * self.steps) if self.fall else 1.0
        return self.rate * min(1.0, rising, falling)


def learn(name: str, module: Module, loss_at: Callable[[int], Tensor], plan: Plan, folder: Path) -> Module:
    """Train to the plan's last step, from the newest checkpoint in the folder where there is one.

    Args:
        loss_at: the loss of a step, a function of the step's number and the module alone, so that a run
            that was interrupted ends with the weights of one that was not.

    Returns:
        the module, with its averaged weights if the plan keeps any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt"
    optimizer = torch.optim.AdamW(module.parameters(), lr=plan.rate, weight_decay=0.01, fused=True)
    average = {key: value.detach().clone() for key, value in module.state_dict().items()}
    begun = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        average, begun = saved["average"], saved["step"]
    module.train()
    total, clock = 0.0, time.monotonic()
    for step in range(begun, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(step)
        loss = loss_at(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(plan.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, value in module.state_dict().items():
                average[key].lerp_(value, 1 - decay) if value.is_floating_point() else average[key].copy_(
                    value
                )
        total += loss.item()
        if (step + 1) % REPORT_EVERY == 0:
            seconds = (time.monotonic() - clock) / REPORT_EVERY
            print(
                f"{name} {step + 1}/{plan.steps} loss {total / REPORT_EVERY:.4f} {seconds:.2f} s/step",
                flush=True,
            )
            total, clock = 0.0, time.monotonic()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == plan.steps:
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            torch.save({**state, "step": step + 1}, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
    module.load_state_dict(average)
    return module.eval()
