"""DreamBoothExtract: fine-tune the UNet, then extract an adapter from the change of its weights by SVD.

Only weights that an adapter can change are fine-tuned: the linear layers of the UNet's transformers, four fifths of
SDXL's weights, and optionally the convolutions. So an adapter of full rank equals the fine-tuned model, and the error
of a lower rank is known exactly. Singular values are not clamped: kohya's scripts and others clamp them at the 0.99
quantile, which loses half of the energy where changes have outliers.
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

from ...errors import BadConfigurationError
from .adapter import ADAPTER, UNET, trainable

EXACT_SIDE = 512
"""Largest smaller side of a matrix that is factorised exactly. Larger matrices are factorised by a randomised SVD,
which is twenty times faster and has an error within 0.1% of the best (Halko et al. 2011, arXiv:0909.4061)."""
OVERSAMPLING, POWER_ITERATIONS = 16, 4
"""Parameters of the randomised SVD: additional columns, and `niter` of `torch.svd_lowrank`."""
CONVOLUTIONS = r"\.(resnets|downsamplers|upsamplers)\."


@dataclass(frozen=True)
class Factors:
    """The factors of a layer's change, which is approximately B A."""

    a: Tensor
    """float32, (rank, in) or, for a convolution, (rank, in, height, width)."""
    b: Tensor
    """float32, (out, rank) or, for a convolution, (out, rank, 1, 1)."""
    relative_change: float
    """Frobenius norm of the change, divided by that of the base weight."""
    energy_kept: float
    """Share of the change's squared Frobenius norm that B A keeps, at most 1."""

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def tuned_weights(unet: UNet2DConditionModel, convolutions: bool) -> dict[str, Tensor]:
    """Return the weights that are fine-tuned and extracted, by module name.

    These are the linear layers of the UNet's transformers and, with `convolutions`, the convolutions of its residual
    blocks, down-samplers and up-samplers, as in kohya's LoRA-C3Lier.
    """
    return {
        name: module.weight
        for name, module in sorted(unet.named_modules())
        if (isinstance(module, Linear) and ".attentions." in name)
        or (convolutions and isinstance(module, Conv2d) and re.search(CONVOLUTIONS, name))
    }


def make_trainable(unet: UNet2DConditionModel, convolutions: bool = False) -> None:
    """Freeze the UNet except the weights that are extracted (`tuned_weights`)."""
    unet.requires_grad_(False)
    for weight in tuned_weights(unet, convolutions).values():
        weight.requires_grad_(True)


@torch.no_grad()
def extract(
    tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], rank: int, settings: Extraction
) -> dict[str, Factors]:
    """Select the layers that changed most, and factorise the change of each.

    Layers are selected in the order of their relative change, the largest first, until they have the share
    `layerEnergy` of the squared change of all layers.

    Args:
        tuned: fine-tuned weights by module name: float32, (out, in) or (out, in, height, width).
        base: the base model's weights by the same names.
        rank: largest rank of a layer's factors. It is lower where `rankEnergy` or the layer's size allows no more.

    Raises:
        BadConfigurationError: if nothing has changed.
    """

    # Changes are computed again when they are factorised: to keep them all would take the memory of another UNet.
    def change_of(name: str) -> Tensor:
        return (tuned[name].float() - base[name].to(tuned[name].device).float()).flatten(1)

    energies = {name: float(change_of(name).square().sum()) for name in tuned}
    if not any(energies.values()):
        raise BadConfigurationError(
            "fine-tuning has changed nothing that could be extracted: raise training.learningRate, or lower "
            "training.lrWarmupSteps or training.extraction.factorSteps"
        )
    relative = {name: (energies[name] / float(base[name].float().square().sum())) ** 0.5 for name in tuned}
    target_energy, kept_energy = float(settings.layer_energy) * sum(energies.values()), 0.0
    factors: dict[str, Factors] = {}
    for name in sorted(tuned, key=lambda name: -relative[name]):
        if kept_energy >= target_energy:
            break
        kept_energy += energies[name]
        change = change_of(name)
        a, b = factorise(change, rank, float(settings.rank_energy))
        lost = float((change - b @ a).square().sum())
        shape = tuned[name].shape[1:]
        a, b = a.reshape(-1, *shape), b.reshape(*b.shape, *(1 for _ in shape[1:]))
        factors[name] = Factors(a, b, relative[name], 1 - lost / energies[name])
    return dict(sorted(factors.items()))


def factorise(change: Tensor, rank: int, energy: float = 1.0) -> tuple[Tensor, Tensor]:
    """Compute the best approximation B A of a matrix. Each factor gets the square roots of the singular values.

    Args:
        change: float32, (out, in).
        rank: largest rank.
        energy: share of the squared norm to keep; the rank is as low as this allows.

    Returns:
        A: float32, (r, in), and B: float32, (out, r). r is at most `rank` and the matrix's smaller side.
    """
    side = min(change.shape)
    if side <= EXACT_SIDE or rank + OVERSAMPLING >= side:
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
    else:
        # A fixed seed, so that the same change has the same factors.
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
    """Add extracted factors to a base UNet as an adapter.

    Every layer has the same alpha, whatever its rank r, because diffusers does not read kohya files with several
    alphas. peft scales the product by alpha / r, so both factors are multiplied by sqrt(r / alpha).
    """
    ranks = {name: layer.rank for name, layer in factors.items()}
    prepare_adapter(unet, ranks, rank, alpha)
    modules = dict(unet.named_modules())
    for name, layer in factors.items():
        share = (layer.rank / alpha) ** 0.5
        for matrices, factor in ((modules[name].lora_A, layer.a), (modules[name].lora_B, layer.b)):
            matrices[ADAPTER].weight.copy_(factor * share)


def prepare_adapter(unet: UNet2DConditionModel, ranks: Mapping[str, int], rank: int, alpha: int) -> None:
    """Add an adapter in float32, whose weights are to be loaded, to the layers that have a rank in `ranks`."""
    unet.requires_grad_(False)
    lower = {f"^{name}": own for name, own in ranks.items() if own != rank}
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(ranks), rank_pattern=lower)
    unet.add_adapter(config)
    for parameter in trainable({UNET: unet}).values():
        parameter.data = parameter.data.float()


def ranks_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the rank of each UNet layer by its name.

    Args:
        weights: parameters of an adapter by name, as `adapter.trainable` names them.
    """
    ending = f".lora_A.{ADAPTER}.weight"
    return {
        name.removeprefix(f"{UNET}.").removesuffix(ending): tensor.shape[0]
        for name, tensor in weights.items()
        if name.startswith(f"{UNET}.") and name.endswith(ending)
    }


def report(factors: Mapping[str, Factors], output_error: float) -> dict[str, object]:
    """Build the report of an extraction, as JSON values.

    Args:
        output_error: relative error of the adapter's prediction against the fine-tuned model's, on a fixed batch.
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
