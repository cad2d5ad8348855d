from functools import partial
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel

SMALL_UNET = partial(
    UNet2DConditionModel,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(32, 48),
    layers_per_block=1,
    attention_head_dim=(2, 4),
    cross_attention_dim=48,
    norm_num_groups=8,
    use_linear_projection=True,
)
"""Configuration of a UNet with few layers, of all kinds that SDXL has."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(
                pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
            )
