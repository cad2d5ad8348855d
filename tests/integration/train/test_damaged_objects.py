"""Changes of a job's objects by others while it trains do not lose the adapter."""

from __future__ import annotations

import pytest

from lora_api.manifest import Manifest
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
