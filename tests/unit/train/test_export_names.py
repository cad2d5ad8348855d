"""kohya's names for the modules of the real SDXL UNet."""

from __future__ import annotations

import re

import torch
from diffusers import UNet2DConditionModel

from lora_trainer.train.adapter import TARGETS, UNET
from lora_trainer.train.export import kohya_module

# The attention blocks of Stability's SDXL UNet and how many transformer blocks each has
# (sgm's OpenAIModel with channel_mult [1, 2, 4], num_res_blocks 2, transformer_depth [0, 2, 10]).
SGM_BLOCKS = {
    **{f"input_blocks_{index}_1": 2 for index in (4, 5)},
    **{f"input_blocks_{index}_1": 10 for index in (7, 8)},
    "middle_block_1": 10,
    **{f"output_blocks_{index}_1": 10 for index in (0, 1, 2)},
    **{f"output_blocks_{index}_1": 2 for index in (3, 4, 5)},
}


def sdxl_unet_on_meta() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            use_linear_projection=True,
        )


def test_names_are_those_of_the_model_that_kohya_trains() -> None:
    unet = sdxl_unet_on_meta()
    found = {
        kohya_module(name, unet.config.layers_per_block)
        for name, _ in unet.named_modules()
        if re.search(rf"attn[12]\.({'|'.join(map(re.escape, TARGETS[UNET]))})$", name)
    }
    expected = {
        f"{block}_transformer_blocks_{index}_{attention}_{projection}"
        for block, depth in SGM_BLOCKS.items()
        for index in range(depth)
        for attention in ("attn1", "attn2")
        for projection in ("to_q", "to_k", "to_v", "to_out_0")
    }
    assert found == expected
    assert len(expected) == 560
