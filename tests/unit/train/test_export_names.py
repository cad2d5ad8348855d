"""kohya's names, shapes and alphas for all modules of the real SDXL, on tensors without data."""

from __future__ import annotations

import re
from copy import deepcopy
from itertools import product
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import Conv2d, Linear
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_trainer.train.export.kohya import kohya_name, layer_tensors
from lora_trainer.train.model.adapter import TEXT_ENCODERS, UNET, adapter_layers, add_adapter
from lora_trainer.train.model.targets import ATTENTION as TARGETS

# Stability's SDXL UNet (sgm's OpenAIModel with channel_mult [1, 2, 4], num_res_blocks 2, transformer_depth
# [0, 2, 10]): each block with attention, how many transformer blocks it has, and its width.
ATTENTION = {
    **{f"input_blocks_{index}_1": (2, 640) for index in (4, 5)},
    **{f"input_blocks_{index}_1": (10, 1280) for index in (7, 8)},
    "middle_block_1": (10, 1280),
    **{f"output_blocks_{index}_1": (10, 1280) for index in (0, 1, 2)},
    **{f"output_blocks_{index}_1": (2, 640) for index in (3, 4, 5)},
}
TEXT = 2048

# Its residual blocks (input and output width), down-samplers and up-samplers.
RESIDUAL = {
    **{f"input_blocks_{index}_0": (320, 320) for index in (1, 2)},
    "input_blocks_4_0": (320, 640),
    "input_blocks_5_0": (640, 640),
    "input_blocks_7_0": (640, 1280),
    "input_blocks_8_0": (1280, 1280),
    **{f"middle_block_{index}": (1280, 1280) for index in (0, 2)},
    **{f"output_blocks_{index}_0": (2560, 1280) for index in (0, 1)},
    "output_blocks_2_0": (1920, 1280),
    "output_blocks_3_0": (1920, 640),
    "output_blocks_4_0": (1280, 640),
    "output_blocks_5_0": (960, 640),
    "output_blocks_6_0": (960, 320),
    **{f"output_blocks_{index}_0": (640, 320) for index in (7, 8)},
}
SAMPLERS = {
    "input_blocks_3_0_op": 320,
    "input_blocks_6_0_op": 640,
    "output_blocks_2_2_conv": 1280,
    "output_blocks_5_2_conv": 640,
}
TIME = 1280


@pytest.fixture(scope="module")
def sdxl() -> dict[str, Any]:
    """The models of stabilityai/stable-diffusion-xl-base-1.0 by its configuration."""
    first = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
    second = CLIPTextConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
        hidden_act="gelu",
    )
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=TEXT,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            use_linear_projection=True,
        )
        text = CLIPTextModel(first), CLIPTextModelWithProjection(second)
    return {UNET: unet, **dict(zip(TEXT_ENCODERS, text, strict=True))}


def shapes(model: Any, component: str, pattern: str) -> dict[str, tuple[int, ...]]:
    return {
        kohya_name(component, name, 2): tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, Linear | Conv2d) and re.search(pattern, name)
    }


def targets(component: str) -> str:
    return rf"\.({'|'.join(map(re.escape, TARGETS[component]))})$"


def test_attention_of_the_unet(sdxl: dict[str, Any]) -> None:
    expected = {}
    for block, (depth, width) in ATTENTION.items():
        for index, attention in product(range(depth), ("attn1", "attn2")):
            base = f"lora_unet_{block}_transformer_blocks_{index}_{attention}"
            inside = width if attention == "attn1" else TEXT
            expected |= {f"{base}_to_q": (width, width), f"{base}_to_out_0": (width, width)}
            expected |= {f"{base}_to_k": (width, inside), f"{base}_to_v": (width, inside)}
    assert shapes(sdxl[UNET], UNET, targets(UNET)) == expected
    assert len(expected) == 560


def test_residual_blocks_and_samplers_of_the_unet(sdxl: dict[str, Any]) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for block, (before, after) in RESIDUAL.items():
        base = f"lora_unet_{block}"
        expected[f"{base}_in_layers_2"] = (after, before, 3, 3)
        expected[f"{base}_out_layers_3"] = (after, after, 3, 3)
        expected[f"{base}_emb_layers_1"] = (after, TIME)
        if before != after:
            expected[f"{base}_skip_connection"] = (after, before, 1, 1)
    expected |= {f"lora_unet_{name}": (width, width, 3, 3) for name, width in SAMPLERS.items()}
    assert shapes(sdxl[UNET], UNET, r"\.(resnets|downsamplers|upsamplers)\.") == expected


@pytest.mark.parametrize(
    ("component", "prefix", "depth", "width"),
    [("text_encoder", "lora_te1", 12, 768), ("text_encoder_2", "lora_te2", 32, 1280)],
)
def test_text_encoders(sdxl: dict[str, Any], component: str, prefix: str, depth: int, width: int) -> None:
    expected = {
        f"{prefix}_text_model_encoder_layers_{index}_self_attn_{projection}": (width, width)
        for index, projection in product(range(depth), ("q_proj", "k_proj", "v_proj", "out_proj"))
    }
    assert shapes(sdxl[component], component, targets(component)) == expected


def test_every_module_has_its_two_matrices_and_alpha(sdxl: dict[str, Any]) -> None:
    rank, alpha = 4, 8
    expected: dict[str, tuple[int, ...]] = {}
    found: dict[str, Tensor] = {}
    for component, model in sdxl.items():
        for name, (after, before) in shapes(model, component, targets(component)).items():
            expected[f"{name}.lora_down.weight"] = (rank, before)
            expected[f"{name}.lora_up.weight"] = (after, rank)
            expected[f"{name}.alpha"] = ()
        adapted = deepcopy(model)
        add_adapter(adapted, component, rank, alpha, seed=None)
        for name, layer in adapter_layers(adapted):
            base = kohya_name(component, name, 2)
            found |= {f"{base}.{suffix}": tensor for suffix, tensor in layer_tensors(layer).items()}
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == expected
    assert len(expected) == 3 * (560 + 48 + 128)
    assert {float(tensor) for name, tensor in found.items() if name.endswith(".alpha")} == {alpha}
