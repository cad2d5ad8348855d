"""Variants of a training in one pod: each has the weights of a separate job, and the best one is published."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from lora_api.manifest import VariantResult
from lora_api.reasons import Reason
from lora_trainer.errors import BadConfigurationError, InterruptedStageError, StageError
from lora_trainer.train import loop, trainer
from lora_trainer.train.finite import DivergedError
from lora_trainer.train.memory.plan import HEADROOM, Machine, best_plan
from tests.integration.train.conftest import Job, JobMaker
from tests.integration.train.test_resuming import SimulatedCrash, crash

SETTINGS: dict[str, Any] = {
    "validation": {"everySteps": 2, "samples": 4, "heldOutImages": 1},
    "textEncoder": {"train": True, "learningRate": "1e-3"},
    "batchSize": 2,
}
LOW = {"rank": 2, "alpha": 2, "learningRate": "1e-5"}
WIDE = {"maxSteps": 6, "seed": 7}
VARIANTS = [
    {"name": "low", **LOW},
    {"name": "wide", **WIDE, "targets": "AttentionAndFeedForward"},
    {"name": "plain"},
]
SOLO = {
    "low": {**SETTINGS, **LOW},
    "wide": {**SETTINGS, **WIDE, "adapter": {"targets": "AttentionAndFeedForward"}},
    "plain": SETTINGS,
}


RESUMED = [{"name": "a"}, {"name": "b", "seed": 1}, {"name": "c", "rank": 8}]


@pytest.fixture
def uninterrupted_variants(make_job: JobMaker, kept: dict[str, Job]) -> Job:
    """Return an uninterrupted job, which is trained once for all tests."""
    if "job" not in kept:
        kept["job"] = make_job(**SETTINGS, variants=RESUMED)
        kept["job"].run()
    return kept["job"]


@pytest.fixture(scope="module")
def kept() -> dict[str, Job]:
    return {}


def last_weights(job: Job, variant: str = "") -> bytes:
    keys = replace(job.config.keys, variant=variant)
    steps = [keys.checkpoint_step(item.key) for item in job.store.output.list(keys.checkpoints, 1000)]
    newest = max(step for step in steps if step is not None)
    return job.store.output.get(f"{keys.checkpoint(newest)}weights.safetensors")


def results(job: Job) -> dict[str, VariantResult]:
    return {result.variant.name: result for result in job.manifest().variants}


def test_each_variant_has_the_weights_of_its_own_job_and_the_best_is_published(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    real = UNet2DConditionModel.from_pretrained

    def load(*arguments: Any, **options: Any) -> UNet2DConditionModel:
        loaded.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", load)
    job = make_job(**SETTINGS, variants=VARIANTS)
    result = job.run()
    assert len(loaded) == 1
    solo = {name: make_job(**settings) for name, settings in SOLO.items()}
    for name, other in solo.items():
        other.run()
        assert last_weights(job, name) == last_weights(other), name
    measured = results(job)
    assert list(measured) == ["low", "wide", "plain"]
    losses = {name: each.held_out_loss for name, each in measured.items()}
    assert losses == {name: other.records()[-1]["held_out_loss"] for name, other in solo.items()}
    best = min(losses, key=lambda name: losses[name] or 0.0)
    assert [name for name, each in measured.items() if each.published] == [best]
    assert job.attempt_file("adapter.safetensors") == solo[best].attempt_file("adapter.safetensors")
    assert result.training is not None
    assert result.training.final_step == job.manifest().steps == measured[best].steps
    page = job.attempt_file("report.html").decode()
    assert all(f"<td><b>{name}</b>" in page or f"<td>{name}" in page for name in measured)


@pytest.mark.parametrize("end", ["lost", "interrupted"])
@pytest.mark.parametrize("step", [1, 4, 5, 9])
def test_a_lost_or_interrupted_pod_continues_with_the_same_variant(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch, uninterrupted_variants: Job, end: str, step: int
) -> None:
    """Steps are counted over all variants, which have four steps each."""
    job = make_job(**SETTINGS, variants=RESUMED, checkpoint={"everySteps": 2})
    done = []
    real = loop.accumulate

    def accumulate(state: loop.TrainState, number: int) -> torch.Tensor:
        done.append(number)
        if len(done) == step:
            crash() if end == "lost" else os.kill(os.getpid(), signal.SIGTERM)
        return real(state, number)

    monkeypatch.setattr(loop, "accumulate", accumulate)
    with pytest.raises(SimulatedCrash if end == "lost" else InterruptedStageError):
        job.run()
    assert len(done) == step
    job.run()
    saved = step if end == "interrupted" else (step - 1) // 2 * 2
    assert len(done) - step == 12 - saved
    assert job.manifest().variants == uninterrupted_variants.manifest().variants
    adapter = uninterrupted_variants.attempt_file("adapter.safetensors")
    assert job.attempt_file("adapter.safetensors") == adapter


def test_a_variant_that_diverges_is_reported_and_the_others_are_trained(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = [{"name": "fast", "learningRate": "5"}, {"name": "slow"}]
    job = make_job(**SETTINGS, variants=variants)
    real = loop.accumulate

    def accumulate(state: loop.TrainState, number: int) -> torch.Tensor:
        if state.training.learning_rate == 5:
            next(iter(state.parameters.values())).data.fill_(float("nan"))
        elif number == 3 and not attempts:
            attempts.append(number)
            crash()
        return real(state, number)

    attempts: list[int] = []
    monkeypatch.setattr(loop, "accumulate", accumulate)
    with pytest.raises(SimulatedCrash):
        job.run()
    trained_rates = []

    def record(state: loop.TrainState, number: int) -> torch.Tensor:
        trained_rates.append(state.training.learning_rate)
        return real(state, number)

    monkeypatch.setattr(loop, "accumulate", record)
    job.run()
    assert 5 not in trained_rates, "a later pod does not train it again"
    measured = results(job)
    assert "is not finite" in measured["fast"].error
    assert measured["slow"].published
    assert "is not finite" in job.attempt_file("report.html").decode()


def test_a_job_fails_when_every_variant_diverges(make_job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(**SETTINGS, variants=[{"name": "a"}, {"name": "b"}])
    real = loop.accumulate

    def accumulate(state: loop.TrainState, number: int) -> torch.Tensor:
        next(iter(state.parameters.values())).data.fill_(float("nan"))
        return real(state, number)

    monkeypatch.setattr(loop, "accumulate", accumulate)
    with pytest.raises(StageError, match="every variant failed: the trained weight is not finite") as caught:
        job.run()
    assert isinstance(caught.value, DivergedError)
    assert not job.store.output.exists(job.config.keys.manifest(1))


def test_a_variant_whose_blocks_have_no_layers_is_refused_before_the_first_step(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(
        adapter={"targets": "Full", "blocks": [{"block": "down_blocks.0", "rank": 2}]},
        validation={"everySteps": 2},
        variants=[{"name": "a"}, {"name": "b", "targets": "Attention"}],
    )
    monkeypatch.setattr(loop, "accumulate", _refuse_to_train)
    with pytest.raises(
        BadConfigurationError, match=r"^training\.variants: with b, .*down_blocks\.0"
    ) as caught:
        job.run()
    assert caught.value.reason == Reason.CONFIGURATION_INVALID


def test_a_variant_that_does_not_fit_into_memory_is_refused_before_the_first_step(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch, tiny_sdxl: Path, model_cache: Path
) -> None:
    job = make_job(validation={"everySteps": 2}, variants=[{"name": "a"}, {"name": "b", "rank": 1024}])
    machine = Machine("cpu", 2**40, model_cache / "traces")
    small, large = (
        best_plan(training, tiny_sdxl, machine, torch.float32).phases["training"]
        for training in job.config.spec.training.trainings().values()
    )
    assert small < large
    monkeypatch.setattr(trainer, "free_memory", lambda device: int((small + large) / 2 / HEADROOM))
    monkeypatch.setattr(loop, "accumulate", _refuse_to_train)
    with pytest.raises(BadConfigurationError, match=r"^training\.variants: with b, .*does not fit") as caught:
        job.run()
    assert caught.value.reason == Reason.OUT_OF_MEMORY


def _refuse_to_train(state: loop.TrainState, number: int) -> torch.Tensor:
    raise AssertionError("a step was trained")


def test_the_images_of_a_stopped_variant_are_not_mixed_up(make_job: JobMaker) -> None:
    job = make_job(
        **SETTINGS,
        variants=[{"name": "a"}, {"name": "b", "seed": 1}],
        preview={"prompts": ["a photo of CUS statue"], "everySteps": 2, "numInferenceSteps": 2},
    )
    job.run()
    (best,) = (name for name, each in results(job).items() if each.published)
    names = [preview.key.rpartition("/")[2] for preview in job.manifest().previews]
    assert names == [f"preview-{best}-{step:06d}-00.png" for step in (2, 4)]
