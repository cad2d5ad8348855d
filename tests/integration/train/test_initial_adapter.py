"""Training that starts from a published adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load, save_file

from lora_api.job import Training
from lora_api.training import InitialAdapter
from lora_trainer.errors import BadConfigurationError
from lora_trainer.train.export.adapter_file import write_diffusers
from lora_trainer.train.model.adapter import UNET, add_adapter
from lora_trainer.train.model.initial_adapter import fetch_initial_adapter, load_initial_adapter
from tests.integration.train.conftest import Job, JobMaker

SMALL: dict[str, Any] = {"adapter": {"targets": "AttentionAndFeedForward"}, "maxSteps": 2}


@pytest.fixture
def finished(make_job: JobMaker) -> Job:
    job = make_job(**SMALL)
    job.run()
    return job


def initial(job: Job, **changes: str) -> dict[str, str]:
    adapter = job.manifest().adapter
    return {"key": adapter.location[1], "sha256": adapter.sha256, **changes}


def test_training_begins_with_the_weights_of_the_adapter(
    make_job: JobMaker, finished: Job, tiny_sdxl: Path
) -> None:
    # With almost no learning rate, the published weights are the initial ones.
    job = make_job(**{**SMALL, "from": initial(finished), "learningRate": "1e-12", "maxSteps": 1})
    job.run()
    before, after = (load(each.attempt_file("adapter.safetensors")) for each in (finished, job))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert (after[name] - weight).abs().max() < 1e-9, name
    assert any(weight.abs().max() > 1e-4 for name, weight in after.items() if "lora_B" in name)
    assert job.records()[0]["loss"] > 0

    folder, bucket = job.folder, job.store.output
    wrong_files = [
        ({"sha256": "0" * 64}, r"sha256 of s3://\S+ is [0-9a-f]{64}, not 0000"),
        ({"key": "studio/none.safetensors"}, "does not exist"),
        ({"key": "another/statue.safetensors"}, "must begin with studio/"),
    ]
    for changes, message in wrong_files:
        with pytest.raises(BadConfigurationError, match=message):
            fetch_initial_adapter(
                InitialAdapter.model_validate(initial(finished, **changes)), "studio", bucket, folder
            )
    path = fetch_initial_adapter(InitialAdapter.model_validate(initial(finished)), "studio", bucket, folder)
    wrong_settings: list[tuple[dict[str, Any], str]] = [
        ({"rank": 8}, r"use its training\.rank"),
        (
            {"rank": 8, "adapter": {**SMALL["adapter"], "blocks": [{"block": "mid_block", "rank": 2}]}},
            r"use its training\.rank, training\.adapter\.blocks and its base model, also where a recipe",
        ),
        (
            {"adapter": {**SMALL["adapter"], "blocks": [{"block": "mid_block", "rank": 2}]}},
            r"unet\.mid_block\S+ is \(4, \d+\), this job's is \(2, \d+\); use its training\.rank, training\.adapter\.blocks and",
        ),
        ({"alpha": 4}, "alpha is 16: set"),
        ({"rank": 32, "alpha": 32}, r"set training\.alpha: 16 and training\.rank: 4, also where a recipe"),
        ({"adapter": {}}, "also has unet"),
        ({"adapter": {"targets": "Full"}}, "lacks unet"),
        ({"adapter": {"targets": "Full"}}, r"training\.adapter \(targets, .* also where a recipe"),
    ]
    for settings, message in wrong_settings:
        training = Training.model_validate({"rank": 4, **SMALL, **settings})
        unet = UNet2DConditionModel.from_pretrained(tiny_sdxl, subfolder="unet")
        add_adapter(unet, UNET, training.rank, training.alpha, 0, kind=training.adapter)
        with pytest.raises(BadConfigurationError, match=message):
            load_initial_adapter(path, {UNET: unet}, training)


def test_another_rank_of_the_convolutions_is_named(tiny_sdxl: Path, tmp_path: Path) -> None:
    def adapted(**adapter: object) -> tuple[Training, UNet2DConditionModel]:
        training = Training.model_validate(
            {"rank": 4, "alpha": 4, "adapter": {"targets": "Full", "convolutionRank": 4, **adapter}}
        )
        unet = UNet2DConditionModel.from_pretrained(tiny_sdxl, subfolder="unet")
        add_adapter(unet, UNET, training.rank, training.alpha, 0, kind=training.adapter)
        return training, unet

    path = tmp_path / "adapter.safetensors"
    write_diffusers(path, {UNET: adapted()[1]})
    training, unet = adapted(convolutionRank=2)
    with pytest.raises(BadConfigurationError, match=r"training\.adapter\.convolutionRank and its base model"):
        load_initial_adapter(path, {UNET: unet}, training)


def test_an_adapter_that_is_not_finite_is_refused_with_the_layer(tiny_sdxl: Path, tmp_path: Path) -> None:
    training = Training.model_validate({"rank": 4, "alpha": 4})
    unet = UNet2DConditionModel.from_pretrained(tiny_sdxl, subfolder="unet")
    add_adapter(unet, UNET, training.rank, training.alpha, 0)
    path = tmp_path / "adapter.safetensors"
    write_diffusers(path, {UNET: unet})
    tensors = load(path.read_bytes())
    name = min(tensors)
    tensors[name][0, 0] = float("nan")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)
    with pytest.raises(BadConfigurationError, match=rf"training\.from: {name} of the adapter is not finite"):
        load_initial_adapter(path, {UNET: unet}, training)
