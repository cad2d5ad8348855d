from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_api.job import Training
from lora_trainer.errors import BadConfigurationError
from lora_trainer.train.settings import choose_dtype, refuse_unsupported


def test_the_defaults_are_supported() -> None:
    refuse_unsupported(Training())


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"lrScheduler": "piecewise_constant"}, "training.lrScheduler: piecewise_constant"),
        (
            {"optimizer": "Prodigy", "learningRate": "1", "textEncoder": {"train": True}},
            "training.textEncoder.learningRate",
        ),
        ({"method": "LoRA", "priorPreservation": {"enabled": True}}, "training.priorPreservation.enabled"),
        ({"extraction": {"factorSteps": 9}}, "training.extraction with method DreamBoothLoRA"),
        ({"method": "DreamBoothExtract", "adapter": {"useDoRA": True}}, "training.adapter with method"),
        ({"method": "DreamBoothExtract", "quantizeBase": "NF4"}, "training.quantizeBase with method"),
        ({"method": "DreamBoothExtract", "textEncoder": {"train": True}}, "training.textEncoder.train"),
        ({"quantizeBase": "NF4", "adapter": {"useDoRA": True}}, "training.quantizeBase with DoRA"),
        ({"quantizeBase": "Int8", "adapter": {"type": "LoKr"}}, "training.quantizeBase with DoRA"),
    ],
)
def test_what_is_absent_is_refused_by_name(setting: dict[str, Any], name: str) -> None:
    with pytest.raises(BadConfigurationError, match=name):
        refuse_unsupported(Training.model_validate(setting))


def test_fp16_runs_on_a_gpu_only() -> None:
    assert choose_dtype(Training(), torch.device("cuda")) == torch.float16
    with pytest.raises(BadConfigurationError, match=r"training\.mixedPrecision"):
        choose_dtype(Training(), torch.device("cpu"))
