"""Optimizers and learning-rate schedules by their names in the job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch.nn import Parameter
from torch.optim.lr_scheduler import LRScheduler

from lora_api.job import Optimizer, Training

from .adapter import UNET

BETAS, EPSILON, WEIGHT_DECAY = (0.9, 0.999), 1e-8, 1e-4
"""Of diffusers' DreamBooth script."""
MAX_GRADIENT_NORM = 1.0
"""Gradients are clipped to this norm before every step, as diffusers' script does."""


def build_optimizer(training: Training, parameters: Mapping[str, Parameter]) -> torch.optim.Optimizer:
    """The job's optimizer over the UNet's parameters and, at their own rate, the text encoders'.

    Args:
        parameters: by `component.name`.
    """
    unet = [p for name, p in parameters.items() if name.startswith(f"{UNET}.")]
    text = [p for name, p in parameters.items() if not name.startswith(f"{UNET}.")]
    groups: list[dict[str, Any]] = [{"params": unet, "lr": float(training.learning_rate)}]
    if text:
        groups.append({"params": text, "lr": float(training.text_encoder.learning_rate)})
    match training.optimizer:
        case Optimizer.ADAMW:
            return torch.optim.AdamW(groups, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY, fused=True)
        case Optimizer.ADAMW_8BIT:
            import bitsandbytes

            # States in 8 bits (Dettmers et al. 2021, arXiv:2110.02861), of tensors from 4,096 elements up.
            optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
                groups, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY
            )
            return optimizer
        case Optimizer.PRODIGY:
            from prodigyopt import Prodigy

            # Finds its own step size (Mishchenko & Defazio 2023, arXiv:2306.06101); learningRate multiplies it.
            prodigy: torch.optim.Optimizer = Prodigy(
                groups,
                betas=BETAS,
                eps=EPSILON,
                weight_decay=WEIGHT_DECAY,
                use_bias_correction=True,
                safeguard_warmup=True,
            )
            return prodigy
        case Optimizer.ADAFACTOR:
            from transformers.optimization import Adafactor

            # Second moments by row and column (Shazeer & Stern 2018, arXiv:1804.04235), at the job's rate:
            # scaled by a parameter's size, a step would leave B at zero.
            adafactor: torch.optim.Optimizer = Adafactor(
                groups,
                weight_decay=WEIGHT_DECAY,
                scale_parameter=False,
                relative_step=False,
                warmup_init=False,
            )
            return adafactor


def build_schedule(training: Training, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The learning rate over `maxSteps` optimizer steps, by diffusers.optimization."""
    rates: LRScheduler = get_scheduler(
        training.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=training.lr_warmup_steps,
        num_training_steps=training.max_steps,
    )
    return rates


def continue_schedule(rates: LRScheduler, state: dict[str, Any]) -> None:
    """Let a new optimizer's learning rate go on where another one's stood."""
    rates.load_state_dict(state)
    for group, rate in zip(rates.optimizer.param_groups, rates.get_last_lr(), strict=True):
        group["lr"] = rate


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as tensors for safetensors and the rest for JSON; nothing needs pickle."""
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index} {name}"] = value
            else:
                scalars[f"{index} {name}"] = value
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return tensors, {"state": scalars, "groups": groups}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], rest: dict[str, Any]
) -> None:
    """Put back what `optimizer_state` took."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *rest["state"].items()):
        index, name = key.split(" ", 1)
        state.setdefault(int(index), {})[name] = value
    plain = optimizer.state_dict()["param_groups"]
    groups = [
        {**saved, "params": group["params"]} for saved, group in zip(rest["groups"], plain, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
