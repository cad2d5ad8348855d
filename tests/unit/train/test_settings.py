from __future__ import annotations

import pytest
import torch

from lora_api.job import Training
from lora_trainer.errors import BadConfigurationError
from lora_trainer.train import validation
from lora_trainer.train.validation import choose_dtype, find_emulation


def test_fp16_runs_on_a_gpu_only() -> None:
    assert choose_dtype(Training(), torch.device("cuda")) == torch.float16
    with pytest.raises(BadConfigurationError, match=r"training\.mixedPrecision"):
        choose_dtype(Training(), torch.device("cpu"))


@pytest.mark.parametrize("emulates", [False, True])
def test_a_cpu_without_bf16_is_warned_of(emulates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "emulates_bf16", lambda: emulates)
    bf16, cpu = Training.model_validate({"mixedPrecision": "bf16"}), torch.device("cpu")
    assert find_emulation(bf16, cpu).startswith("training.mixedPrecision") == emulates
    assert not find_emulation(bf16, torch.device("cuda"))
    assert not find_emulation(Training.model_validate({"mixedPrecision": "fp32"}), cpu)
