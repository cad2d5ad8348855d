"""The optimizers and learning-rate schedulers that a job can name, and their state in checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lora_api.job import Optimizer, Training

from ..new_tokens import PREFIX as TOKEN_EMBEDDINGS
from .model.flat_parameters import FlatParameters
from .model.targets import UNET, block_override
from .model.token_embeddings import steps_of

BETAS, EPSILON, WEIGHT_DECAY = (0.9, 0.999), 1e-8, 1e-4
"""The values of diffusers' DreamBooth script."""
MAX_GRADIENT_NORM = 1.0
"""Gradients are clipped to this norm before every step, as diffusers' script does."""
GROUP = "group"
"""Prefix of the names of a parameter group's tensors in a checkpoint."""
ELEMENTWISE = {Optimizer.ADAMW, Optimizer.ADAMW_8BIT, Optimizer.PRODIGY}
"""Optimizers that treat each element alone, so that a group can be a few flat tensors instead of one for each matrix.
This needs fewer kernel launches."""
BY_MATRIX = {Optimizer.ADAFACTOR, Optimizer.CAME}
"""Optimizers that keep moments by row and column. A stack of all matrices of a shape is one tensor for them."""


@runtime_checkable
class NeedsSums(Protocol):
    """An optimizer that finds its step size from sums on the device, which the loop reads together with the loss."""

    def sums(self) -> Sequence[Tensor]:
        """Compute the sums that the next step needs from the current gradients: float32, ()."""

    def use(self, sums: Sequence[float]) -> None:
        """Give the next step the values of `sums`."""


def build_optimizer(
    training: Training, parameters: Mapping[str, Parameter], flat: FlatParameters | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer over the UNet's parameters and, at their own learning rates, those of the text encoders.

    Args:
        parameters: the trained parameters by `component.name`, in float32.
        flat: the same parameters in one tensor, of which the optimizer gets few, large pieces; None: each parameter is
            one piece.
    """
    groups = parameter_groups(training, parameters)
    if flat and training.optimizer in ELEMENTWISE | BY_MATRIX:
        pieces = flat.segments if training.optimizer in ELEMENTWISE else flat.stacks
        groups = [{**group, "params": own} for group, own in zip(groups, pieces, strict=True)]
    match training.optimizer:
        case Optimizer.ADAMW:
            return torch.optim.AdamW(groups, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY, fused=True)
        case Optimizer.ADAMW_8BIT:
            from .overrides.optimizers import AdamW8bit

            # Keeps states in 8 bits (Dettmers et al. 2021, arXiv:2110.02861) for tensors of 4,096 elements or more.
            optimizer: torch.optim.Optimizer = AdamW8bit(
                groups, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY
            )
            return optimizer
        case Optimizer.PRODIGY:
            from .overrides.prodigy import Prodigy

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

            from .overrides.optimizers import StackedAdafactor

            # Second moments by row and column (Shazeer & Stern 2018, arXiv:1804.04235). The learning rate is the
            # job's: scaled by the parameter's size (scale_parameter), it would leave B, which starts at zero, there.
            adafactor: torch.optim.Optimizer = (StackedAdafactor if flat else Adafactor)(
                groups,
                weight_decay=WEIGHT_DECAY,
                scale_parameter=False,
                relative_step=False,
                warmup_init=False,
            )
            return adafactor
        case Optimizer.CAME:
            from came_pytorch import CAME

            from .overrides.optimizers import StackedCAME

            # Adafactor with updates weighted by confidence (Luo et al. 2023, arXiv:2307.02047).
            came: torch.optim.Optimizer = (StackedCAME if flat else CAME)(
                groups, lr=float(training.learning_rate), weight_decay=WEIGHT_DECAY
            )
            return came
        case Optimizer.PRODIGY_SCHEDULE_FREE:
            from .overrides.prodigy import ProdigyScheduleFree

            # Finds its own step size and averages the weights itself, so it takes no schedule and no warm-up.
            schedule_free: torch.optim.Optimizer = ProdigyScheduleFree(
                groups, lr=float(training.learning_rate), weight_decay=WEIGHT_DECAY, eps=EPSILON
            )
            return schedule_free


def parameter_groups(training: Training, parameters: Mapping[str, Parameter]) -> list[dict[str, Any]]:
    """Group parameters by their learning rate: the UNet's groups first, then the text encoders' or the embeddings'."""
    groups: dict[tuple[bool, float], list[Parameter]] = {}
    for name, parameter in parameters.items():
        is_text = not name.startswith(f"{UNET}.")
        if name.startswith(f"{TOKEN_EMBEDDINGS}."):
            rate = float(training.token_embeddings.learning_rate)
        else:
            rate = float(training.text_encoder.learning_rate if is_text else training.learning_rate)
        override = None if is_text else block_override(name.removeprefix(f"{UNET}."), training.adapter)
        if override:
            rate *= float(override.learning_rate_scale)
        if ".lora_B." in name:
            rate *= float(training.lora_plus_ratio)
        groups.setdefault((is_text, rate), []).append(parameter)
    # The group with the job's own rate comes first, because the first group's rate is recorded.
    first = (False, float(training.learning_rate))
    order = sorted(groups, key=lambda group: (group[0], group != first))
    # Token embeddings and text encoders are never trained together: see the rules of the job.
    ends = {"last_step": steps_of(training)} if training.token_embeddings.train else {}
    return [{"params": groups[key], "lr": key[1], **(ends if key[0] else {})} for key in order]


def average_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Parameter]
) -> dict[str, Tensor] | None:
    """Compute the averaged parameters of a schedule-free optimizer, by name; None for other optimizers.

    Schedule-free methods evaluate gradients at y, an interpolation of the iterates z and their average x
    (Defazio et al. 2024, arXiv:2405.15682). The averages are x = y + (1 - 1/beta1) (z - y). During training the
    parameters hold y.
    """
    averages: dict[int, Tensor] = {}
    for group in optimizer.param_groups:
        if not group.get("use_schedulefree"):
            return None
        weight = 1 - 1 / group["betas"][0]
        for parameter in group["params"]:
            z = optimizer.state.get(parameter, {}).get("z")
            averages[id(parameter)] = parameter.detach() if z is None else parameter.detach().lerp(z, weight)
    return {name: averages[id(parameter)] for name, parameter in parameters.items()}


def build_lr_scheduler(training: Training, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Build the scheduler that multiplies each group's learning rate by `lr_factor`, up to the group's `last_step`."""

    def factor_until(last: float) -> Callable[[int], float]:
        return lambda step: lr_factor(training, step) if step < last else 0.0

    return LambdaLR(
        optimizer, [factor_until(group.get("last_step", math.inf)) for group in optimizer.param_groups]
    )


def lr_factor(training: Training, step: int) -> float:
    """Compute the factor of the learning rate at a step, which is counted from 0.

    The curves are those of diffusers.optimization, which is not used, because its polynomial schedule takes the final
    rate from the optimizer's defaults, which Adafactor does not have and which differ from the rates of parameter
    groups, and its other schedules have no setting for the final rate.
    """
    warmup = training.lr_warmup_steps
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, training.max_steps - warmup)
    if progress >= 1 and not training.lr_scheduler.startswith("constant"):
        share = 0.0
    else:
        match training.lr_scheduler:
            case "constant" | "constant_with_warmup":
                return 1.0
            case "linear":
                share = (training.max_steps - step) / max(1, training.max_steps - warmup)
            case "cosine":
                share = 0.5 * (1.0 + math.cos(math.pi * progress))
            case "cosine_with_restarts":
                cycle = (training.lr_scheduler_cycles * progress) % 1.0
                share = 0.5 * (1.0 + math.cos(math.pi * cycle))
            case "polynomial":
                share = (1 - progress) ** float(training.lr_scheduler_power)
    end = float(training.lr_scheduler_end_ratio)
    return end + (1 - end) * max(0.0, share) if end else max(0.0, share)


def continue_lr_scheduler(lr_scheduler: LRScheduler, training: Training, step: int) -> None:
    """Let the scheduler of a new optimizer begin at a step, which is counted from 0.

    The state of the earlier optimizer's scheduler is not loaded: its parameter groups may be others, for example with
    loraPlusRatio, which does not apply to the weights of a UNet.
    """
    learning_rates = [rate * lr_factor(training, step) for rate in lr_scheduler.base_lrs]
    state = lr_scheduler.state_dict() | {
        "last_epoch": step,
        "_step_count": step + 1,
        "_last_lr": learning_rates,
    }
    lr_scheduler.load_state_dict(state)
    for group, rate in zip(lr_scheduler.optimizer.param_groups, learning_rates, strict=True):
        group["lr"] = rate


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors for safetensors and other values for JSON, so that pickle is not needed.

    Keys are "<index of the parameter> <name>", or "group<index of the group> <name>".
    """
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index} {name}"] = value
            else:
                scalars[f"{index} {name}"] = value
    groups: list[dict[str, Any]] = []
    for index, group in enumerate(optimizer.param_groups):
        values = {name: value for name, value in group.items() if name != "params"}
        # Schedule-free Prodigy keeps running sums of a group as tensors.
        tensors |= {f"{GROUP}{index} {name}": v for name, v in values.items() if isinstance(v, torch.Tensor)}
        groups.append({name: v for name, v in values.items() if not isinstance(v, torch.Tensor)})
    return tensors, {"state": scalars, "groups": groups}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], rest: dict[str, Any]
) -> None:
    """Load what `optimizer_state` returned."""
    state: dict[int, dict[str, Any]] = {}
    saved_groups = [dict(group) for group in rest["groups"]]
    for key, value in (*tensors.items(), *rest["state"].items()):
        index, name = key.split(" ", 1)
        if index.startswith(GROUP):
            saved_groups[int(index.removeprefix(GROUP))][name] = value
            continue
        state.setdefault(int(index), {})[name] = value
    plain = optimizer.state_dict()["param_groups"]
    groups = [{**saved, "params": group["params"]} for saved, group in zip(saved_groups, plain, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
