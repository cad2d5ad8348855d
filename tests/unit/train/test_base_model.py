"""Which base models can be trained at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_trainer.errors import BadConfigurationError
from lora_trainer.train.model.base_model import BaseModel


def model(folder: Path, name: str, **config: object) -> BaseModel:
    (folder / "scheduler").mkdir()
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": name, **config}))
    return BaseModel(folder, "some model")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_models_on_ddpms_schedule_are_taken_as_they_say(tmp_path: Path, prediction: str) -> None:
    found = model(tmp_path, "EulerDiscreteScheduler", prediction_type=prediction, beta_end=0.012)
    schedule = found.noise_scheduler()
    assert schedule.config.prediction_type == prediction
    assert schedule.config.beta_end == 0.012


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        ("EDMDPMSolverMultistepScheduler", "epsilon"),
        ("EDMEulerScheduler", "v_prediction"),
        ("FlowMatchEulerDiscreteScheduler", "epsilon"),
        ("EulerDiscreteScheduler", "sample"),
    ],
)
def test_other_formulations_are_refused_by_name(tmp_path: Path, name: str, prediction: str) -> None:
    with pytest.raises(BadConfigurationError, match=f"{name} with prediction {prediction}: .* baseModel"):
        model(tmp_path, name, prediction_type=prediction).noise_scheduler()
