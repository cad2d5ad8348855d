"""How other programs read an adapter's file: the changed weight of one layer.

lycoris_lora is the library itself. ComfyUI and AUTOMATIC1111 are their documented formulas: comfy/weight_adapter of
ComfyUI 0.3.77, and extensions-builtin/Lora/network_*.py of AUTOMATIC1111 1.10.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

Tensors = Mapping[str, Tensor]


def lycoris(module: torch.nn.Module, tensors: Tensors) -> Tensor:
    """Merge by lycoris_lora, which detects the kind of adapter by the names."""
    from lycoris.modules import get_module, make_module

    state = {f"layer.{name}": tensor for name, tensor in tensors.items()}
    kind, parameters = get_module(state, "layer")
    adapter = make_module(kind, parameters, "layer", module)
    merged: Tensor = adapter.get_merged_weight(shape=module.weight.shape)[0]
    return merged.detach()


def change_of(base: Tensor, tensors: Tensors) -> Tensor:
    """Compute the low-rank change, on which ComfyUI and AUTOMATIC1111 agree."""
    alpha = float(tensors["alpha"])
    if "hada_w1_a" in tensors:
        first = tensors["hada_w1_a"] @ tensors["hada_w1_b"]
        second = tensors["hada_w2_a"] @ tensors["hada_w2_b"]
        change, rank = first * second, tensors["hada_w1_b"].shape[0]
    elif any("lokr" in name for name in tensors):
        rank = 0
        sides = []
        for side in ("lokr_w1", "lokr_w2"):
            if side in tensors:
                sides.append(tensors[side])
            else:
                sides.append(tensors[f"{side}_a"] @ tensors[f"{side}_b"])
                rank = tensors[f"{side}_b"].shape[0]
        first, second = sides
        change = torch.kron(first[:, :, None, None] if second.dim() == 4 else first, second.contiguous())
    else:
        down = tensors["lora_down.weight"]
        change, rank = tensors["lora_up.weight"].flatten(1) @ down.flatten(1), down.shape[0]
    return change.reshape(base.shape) * (alpha / rank if rank else 1.0)


def comfyui(base: Tensor, tensors: Tensors) -> Tensor:
    """`weight_decompose`: DoRA's scale over the norm of the base weight's outputs."""
    changed = base + change_of(base, tensors)
    if "dora_scale" in tensors:
        norm = base.flatten(1).norm(dim=1).reshape(-1, *[1] * (base.dim() - 1))
        changed = changed * tensors["dora_scale"] / (norm + torch.finfo(base.dtype).eps)
    return changed


def automatic1111(base: Tensor, tensors: Tensors) -> Tensor:
    """`apply_weight_decompose`: DoRA's scale over the norm of the changed weight's inputs."""
    changed = base + change_of(base, tensors)
    if "dora_scale" in tensors:
        inputs = changed.transpose(0, 1)
        norm = inputs.reshape(changed.shape[1], -1).norm(dim=1)
        norm = norm.reshape(changed.shape[1], *[1] * (base.dim() - 1)).transpose(0, 1)
        changed = changed * (tensors["dora_scale"] / norm)
    return changed


def comfyui_embedding(path: Path, width: int, key: str) -> Tensor | None:
    """`load_embed` of comfy/sd1_clip.py, for a file in the safetensors format.

    Args:
        path: file in the folder of embeddings; prompts name it as `embedding:NAME`.
        width: width of the text encoder's embeddings. Rows of another width are skipped with a warning.
        key: name of the text encoder's matrix: clip_l, or clip_g of SDXL's second encoder.
    """
    embed = load_file(path)
    if "string_to_param" in embed:
        found = next(iter(embed["string_to_param"].values()))
    elif key in embed:
        found = embed[key]
    else:
        found = next(iter(embed.values()))
    return found if found.shape[-1] == width else None
