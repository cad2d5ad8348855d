"""DreamBoothExtract: fine-tune the UNet itself, then take an adapter out of what changed, by SVD.

Only what an adapter can carry is fine-tuned: the linear layers of the UNet's transformers, four fifths of SDXL's
weights. So an adapter of full rank is the fine-tuned model, and what a lower rank leaves out is known exactly.
Singular values are not clamped: kohya's scripts and others cut them at the 0.99 quantile, which on changes with
outliers loses half of the energy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor

KEEP = 0.9999
"""Of the squared change of all layers, the share that the selected ones must hold together."""
EXACT_SIDE = 512
"""Changes with a side up to this are factorised exactly; larger ones by a randomised SVD, twenty times faster
and within 0.1% of the best (Halko et al. 2011, arXiv:0909.4061)."""
OVERSAMPLING, POWER_ITERATIONS = 16, 4


@dataclass(frozen=True)
class Factors:
    """A layer's change as B A, and how much of it that is."""

    a: Tensor
    """float32, (rank, in)."""
    b: Tensor
    """float32, (out, rank)."""
    relative_change: float
    """Frobenius norm of the change over that of the base weight."""
    energy_kept: float
    """Share of the change's squared singular values."""


def linear_weights(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The weights of all linear layers in the UNet's transformers, by module name."""
    return {
        name: module.weight
        for name, module in sorted(unet.named_modules())
        if isinstance(module, torch.nn.Linear) and ".attentions." in name
    }


def make_trainable(unet: UNet2DConditionModel) -> None:
    """Let the linear layers of the transformers learn, and nothing else."""
    unet.requires_grad_(False)
    for weight in linear_weights(unet).values():
        weight.requires_grad_(True)


@torch.no_grad()
def extract(tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], rank: int) -> dict[str, Factors]:
    """Select the layers that changed most, and factorise the change of each.

    Layers are taken by their relative change, the largest first, until they hold `KEEP` of the
    squared change of all.

    Args:
        tuned, base: weights by module name, in float32.
        rank: of every layer's factors; a layer with fewer dimensions is filled up with zeros.
    """
    changes = {name: (tuned[name].float() - base[name].to(tuned[name].device).float()) for name in tuned}
    energies = {name: float(change.square().sum()) for name, change in changes.items()}
    relative = {name: (energies[name] / float(base[name].float().square().sum())) ** 0.5 for name in changes}
    wanted, held = KEEP * sum(energies.values()), 0.0
    found: dict[str, Factors] = {}
    for name in sorted(changes, key=lambda name: -relative[name]):
        if held >= wanted:
            break
        held += energies[name]
        a, b = factorise(changes[name], rank)
        lost = float((changes[name] - b @ a).square().sum())
        found[name] = Factors(a, b, relative[name], 1 - lost / energies[name])
    return dict(sorted(found.items()))


def factorise(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation B A of a matrix, with the singular values shared evenly by both.

    Returns:
        A, (rank, in), and B, (out, rank).
    """
    side = min(change.shape)
    if side <= EXACT_SIDE or rank + OVERSAMPLING >= side:
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[change.device] if change.is_cuda else []):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(change, q=rank + OVERSAMPLING, niter=POWER_ITERATIONS)
        vh = v.T
    kept = min(rank, side)
    root = s[:kept].sqrt()
    a, b = root[:, None] * vh[:kept], u[:, :kept] * root
    fill = rank - kept
    return torch.nn.functional.pad(a, (0, 0, 0, fill)), torch.nn.functional.pad(b, (0, fill))


@torch.no_grad()
def put_adapter(unet: UNet2DConditionModel, factors: Mapping[str, Factors], rank: int, alpha: int) -> None:
    """Put extracted factors on a base UNet as an adapter whose change alpha / rank B A is the extracted one."""
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(factors)))
    share = (rank / alpha) ** 0.5
    modules = dict(unet.named_modules())
    for name, layer in factors.items():
        for matrices, factor in ((modules[name].lora_A, layer.a), (modules[name].lora_B, layer.b)):
            parameter = matrices["default"].weight
            parameter.data = (factor * share).to(parameter.device, torch.float32)


def report(factors: Mapping[str, Factors], output_error: float) -> dict[str, object]:
    """What to say of an extraction, as JSON.

    Args:
        output_error: of the adapter's prediction against the fine-tuned model's, relative, on fixed noise.
    """
    return {
        "outputError": output_error,
        "layers": {
            name: {
                "relativeChange": layer.relative_change,
                "energyKept": layer.energy_kept,
                "relativeError": max(0.0, 1 - layer.energy_kept) ** 0.5,
            }
            for name, layer in factors.items()
        },
    }
