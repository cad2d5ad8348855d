from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from lora_api.job import QuantizeBase
from lora_trainer.train.model.extract import tuned_weights
from lora_trainer.train.model.quantize import quantize
from lora_trainer.train.model.tiny import write_tiny_sdxl


@pytest.mark.parametrize(
    ("kind", "bits", "error"), [(QuantizeBase.NF4, 4, 0.15), (QuantizeBase.INT8, 8, 0.02)]
)
def test_weights_take_the_bits_they_are_named_for(
    tmp_path: Path, kind: QuantizeBase, bits: int, error: float
) -> None:
    write_tiny_sdxl(tmp_path)
    plain, small = (UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet") for _ in range(2))
    quantize(small, kind)
    small.to("cpu")
    found = tuned_weights(small, convolutions=False)
    for name, weight in tuned_weights(plain, convolutions=False).items():
        assert found[name].nbytes * 8 == weight.numel() * bits
        inputs = torch.eye(weight.shape[1])
        expected, given = plain.get_submodule(name)(inputs), small.get_submodule(name)(inputs)
        assert 0 < (expected - given).norm() / expected.norm() < error
