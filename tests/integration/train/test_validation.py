"""The held-out loss, the best step and early stopping."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.errors import BadDataError
from tests.integration.train.conftest import AdapterMaker, JobMaker
from tests.integration.train.test_resuming import SimulatedCrash, crash, stop_after
from tests.integration.train.test_training import instance_samples
from tests.support.reference_trainer import Reference


@pytest.mark.parametrize(
    "settings", [{}, {"captionDropout": "0.5"}, {"noiseOffset": "0.5"}], ids=["plain", "dropout", "offset"]
)
def test_the_held_out_loss_is_that_of_images_that_are_not_trained_on(
    make_job: JobMaker, tiny_sdxl: Path, clean_images: list[bytes], settings: dict[str, str]
) -> None:
    job = make_job(maxSteps=5, validation={"everySteps": 2, "heldOutImages": 2, "samples": 5}, **settings)
    job.run()
    samples = instance_samples(clean_images)
    reference = Reference(tiny_sdxl, samples[:3], job.config.spec.training)
    for number, record in enumerate(job.records()):
        assert record["loss"] == pytest.approx(reference.step(number), abs=1e-4)
        measured = record["held_out_loss"]
        if number + 1 in (2, 4, 5):
            assert measured == pytest.approx(reference.held_out_loss(samples[3:], 5), abs=1e-4)
        else:
            assert measured is None
    selection = job.manifest().selection
    assert selection is not None
    assert (selection.step, selection.stopped_early) == (5, False)
    assert selection.held_out_loss == job.records()[-1]["held_out_loss"]


def test_the_best_step_is_published_and_a_rising_loss_ends_the_run(
    make_job: JobMaker, uninterrupted: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = {"everySteps": 1, "samples": 2, "publish": "LowestHeldOutLoss", "patience": 2}
    settings = {"learningRate": "3e-2", "checkpoint": {"everySteps": 1, "keepLast": 2}}
    job = make_job(maxSteps=40, validation=validation, **settings)
    # The run is lost after the best step, which the checkpoint contains.
    with monkeypatch.context() as patch:
        stop_after(patch, 5, crash)
        with pytest.raises(SimulatedCrash):
            job.run()
    result = job.run()
    losses = [record["held_out_loss"] for record in job.records()]
    best = losses.index(min(losses)) + 1
    assert len(losses) == best + 2 < 40
    assert result.training is not None
    assert result.training.resumed_from_step == 4
    assert result.training.final_step == len(losses)
    selection = job.manifest().selection
    assert selection is not None
    assert (selection.step, selection.held_out_loss, selection.stopped_early) == (best, min(losses), True)

    assert job.attempt_file("adapter.safetensors") == uninterrupted(maxSteps=best, **settings)


def test_an_image_must_be_left_to_train_on(make_job: JobMaker) -> None:
    with pytest.raises(BadDataError, match="heldOutImages is 5 of 5 images: leave at least one"):
        make_job(validation={"everySteps": 1, "heldOutImages": 5}).run()
