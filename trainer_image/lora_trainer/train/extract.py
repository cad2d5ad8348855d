"""DreamBoothExtract: fine-tune the UNet itself, then take an adapter out of what changed, by SVD.

Only what an adapter can carry is fine-tuned: the linear layers of the UNet's transformers, four fifths of SDXL's
weights, and on demand the convolutions. So an adapter of full rank is the fine-tuned model, and what a lower
rank leaves out is known exactly. Singular values are not clamped: kohya's scripts and others cut them at the 0.99
quantile, which on changes with outliers loses half of the energy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor
from torch.nn import Conv2d, Linear

from lora_api.job import Extraction

from ..errors import BadConfigurationError
from .adapter import ADAPTER, UNET, trainable

EXACT_SIDE = 512
"""Changes with a side up to this are factorised exactly; larger ones by a randomised SVD, twenty times faster
and within 0.1% of the best (Halko et al. 2011, arXiv:0909.4061)."""
OVERSAMPLING, POWER_ITERATIONS = 16, 4
CONVOLUTIONS = r"\.(resnets|downsamplers|upsamplers)\."


@dataclass(frozen=True)
class Factors:
    """A layer's change as B A, and how much of it that is."""

    a: Tensor
    """float32, (rank, in), of a convolution (rank, in, height, width)."""
    b: Tensor
    """float32, (out, rank), of a convolution (out, rank, 1, 1)."""
    relative_change: float
    """Frobenius norm of the change over that of the base weight."""
    energy_kept: float
    """Share of the change's squared singular values."""

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def tuned_weights(unet: UNet2DConditionModel, convolutions: bool) -> dict[str, Tensor]:
    """The weights that are fine-tuned and extracted, by module name.

    All linear layers of the UNet's transformers; with `convolutions`, also those of its residual blocks,
    down-samplers and up-samplers, as kohya's LoRA-C3Lier.
    """
    return {
        name: module.weight
        for name, module in sorted(unet.named_modules())
        if (isinstance(module, Linear) and ".attentions." in name)
        or (convolutions and isinstance(module, Conv2d) and re.search(CONVOLUTIONS, name))
    }


def make_trainable(unet: UNet2DConditionModel, convolutions: bool = False) -> None:
    """Let what is extracted learn, and nothing else."""
    unet.requires_grad_(False)
    for weight in tuned_weights(unet, convolutions).values():
        weight.requires_grad_(True)


@torch.no_grad()
def extract(
    tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], rank: int, settings: Extraction
) -> dict[str, Factors]:
    """Select the layers that changed most, and factorise the change of each.

    Layers are taken by their relative change, the largest first, until they hold `layerEnergy` of the
    squared change of all.

    Args:
        tuned, base: weights by module name, in float32.
        rank: of every layer's factors, or less by `rankEnergy` or where a layer has fewer dimensions.

    Raises:
        BadConfigurationError: when nothing has changed.
    """

    def change_of(name: str) -> Tensor:  # made again when it is factorised: all at once are another model
        return (tuned[name].float() - base[name].to(tuned[name].device).float()).flatten(1)

    energies = {name: float(change_of(name).square().sum()) for name in tuned}
    if not any(energies.values()):
        raise BadConfigurationError(
            "fine-tuning has changed nothing that could be extracted: raise training.learningRate"
        )
    relative = {name: (energies[name] / float(base[name].float().square().sum())) ** 0.5 for name in tuned}
    wanted, held = float(settings.layer_energy) * sum(energies.values()), 0.0
    found: dict[str, Factors] = {}
    for name in sorted(tuned, key=lambda name: -relative[name]):
        if held >= wanted:
            break
        held += energies[name]
        change = change_of(name)
        a, b = factorise(change, rank, float(settings.rank_energy))
        lost = float((change - b @ a).square().sum())
        shape = tuned[name].shape[1:]
        a, b = a.reshape(-1, *shape), b.reshape(*b.shape, *(1 for _ in shape[1:]))
        found[name] = Factors(a, b, relative[name], 1 - lost / energies[name])
    return dict(sorted(found.items()))


def factorise(change: Tensor, rank: int, energy: float = 1.0) -> tuple[Tensor, Tensor]:
    """The best approximation B A of a matrix, with the singular values shared evenly by both.

    Args:
        energy: the share of the squared change that is enough.

    Returns:
        A, (r, in), and B, (out, r), where r is at most `rank` and the matrix's smaller side.
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
    if energy < 1:
        shares = s.square().cumsum(0) / change.square().sum()
        kept = min(kept, int((shares < energy).sum()) + 1)
    root = s[:kept].sqrt()
    return root[:, None] * vh[:kept], u[:, :kept] * root


@torch.no_grad()
def put_adapter(unet: UNet2DConditionModel, factors: Mapping[str, Factors], rank: int, alpha: int) -> None:
    """Put extracted factors on a base UNet as an adapter whose change alpha / r B A is the extracted one.

    Alpha is the same whatever rank r a layer has: diffusers does not read kohya files where it differs.
    """
    ranks = {name: layer.rank for name, layer in factors.items()}
    prepare_adapter(unet, ranks, rank, alpha)
    modules = dict(unet.named_modules())
    for name, layer in factors.items():
        share = (layer.rank / alpha) ** 0.5
        for matrices, factor in ((modules[name].lora_A, layer.a), (modules[name].lora_B, layer.b)):
            matrices[ADAPTER].weight.copy_(factor * share)


def prepare_adapter(unet: UNet2DConditionModel, ranks: Mapping[str, int], rank: int, alpha: int) -> None:
    """Put an empty adapter, in float32, on the layers that a UNet's factors are for."""
    unet.requires_grad_(False)
    lower = {f"^{name}": own for name, own in ranks.items() if own != rank}
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(ranks), rank_pattern=lower)
    unet.add_adapter(config)
    for parameter in trainable({UNET: unet}).values():
        parameter.data = parameter.data.float()


def ranks_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """The rank of each of the UNet's layers in an adapter's parameters, by `unet.` and their names."""
    ending = f".lora_A.{ADAPTER}.weight"
    return {
        name.removeprefix(f"{UNET}.").removesuffix(ending): tensor.shape[0]
        for name, tensor in weights.items()
        if name.startswith(f"{UNET}.") and name.endswith(ending)
    }


def report(factors: Mapping[str, Factors], output_error: float) -> dict[str, object]:
    """What to say of an extraction, as JSON.

    Args:
        output_error: of the adapter's prediction against the fine-tuned model's, relative, on fixed noise.
    """
    return {
        "outputError": output_error,
        "layers": {
            name: {
                "rank": layer.rank,
                "relativeChange": layer.relative_change,
                "energyKept": layer.energy_kept,
                "relativeError": max(0.0, 1 - layer.energy_kept) ** 0.5,
            }
            for name, layer in factors.items()
        },
    }
