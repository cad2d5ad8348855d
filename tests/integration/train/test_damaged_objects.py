"""Objects that others damaged: those of a job that trains do not lose the adapter, and a base model is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_api.exits import ExitCode
from lora_api.manifest import Manifest
from lora_api.reasons import Reason
from lora_trainer.errors import StageError
from lora_trainer.train.trainer import Trainer
from tests.integration.train.conftest import JobMaker


def test_an_adapter_is_published_although_the_caption_files_are_damaged(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(maxSteps=2)
    bucket, keys = job.store.output, job.config.keys
    publish = Trainer.publish

    def publish_after_harm(trainer: Trainer) -> Manifest:
        for key in (keys.captions_manifest, keys.dataset_report):
            bucket.put(key, b"[" * 100_000)
        return publish(trainer)

    monkeypatch.setattr(Trainer, "publish", publish_after_harm)
    result = job.run()
    assert result.adapter is not None
    assert bucket.exists(keys.report(1))


def test_a_base_model_whose_upload_was_cut_off_is_named_and_not_retried(
    make_job: JobMaker, tiny_sdxl: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_sdxl, tmp_path / f"cut-{tmp_path.name}"))
    (weights,) = (model / "text_encoder_2").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(StageError, match="the base model's second text encoder cannot be loaded") as caught:
        make_job(model=model).run()
    assert (caught.value.reason, caught.value.exit_code) == (
        Reason.CONFIGURATION_INVALID,
        ExitCode.BAD_CONFIGURATION,
    )
