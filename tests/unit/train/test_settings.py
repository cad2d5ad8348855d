from __future__ import annotations

import pytest
import torch

from lora_api.job import Training
from lora_trainer.errors import BadConfigurationError
from lora_trainer.train.validation import choose_dtype


def test_fp16_runs_on_a_gpu_only() -> None:
    assert choose_dtype(Training(), torch.device("cuda")) == torch.float16
    with pytest.raises(BadConfigurationError, match=r"training\.mixedPrecision"):
        choose_dtype(Training(), torch.device("cpu"))
