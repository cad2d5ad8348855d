"""Interrupted, killed, damaged and diverged trainings publish the same adapter bit for bit, or none."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lora_api.exits import ExitCode
from lora_api.reasons import Reason
from lora_api.stages import Outcome, decode_result
from lora_cli.transfer import download_adapter
from lora_trainer.errors import InterruptedStageError, StageError
from lora_trainer.train import loop
from tests.integration.train.conftest import AdapterMaker, Job, JobMaker

SETTINGS = {
    "maxSteps": 9,
    "checkpoint": {"everySteps": 3, "keepLast": 2},
    "lrScheduler": "linear",
    "batchSize": 2,
    "optimizer": "AdamW8bit",
    "rank": 80,
}


def checkpoint_steps(job: Job) -> list[int]:
    keys = job.config.keys
    listed = job.store.output.list(keys.checkpoints, 1000)
    return sorted(
        int(item.key.removeprefix(keys.checkpoints)[5:11])
        for item in listed
        if item.key.endswith("manifest.json")
    )


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Act in the middle of optimizer step `step`."""
    real = loop.accumulate

    def accumulate(state: loop.TrainState, number: int) -> torch.Tensor:
        if number + 1 == step:
            act()
        return real(state, number)

    monkeypatch.setattr(loop, "accumulate", accumulate)


class SimulatedCrash(BaseException):
    """Stands for the end of the process by SIGKILL: no handler saves anything."""


def crash() -> None:
    raise SimulatedCrash


def test_interrupted_and_lost_runs_give_the_same_adapter(
    make_job: JobMaker, uninterrupted: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(**SETTINGS)
    with monkeypatch.context() as patch:
        stop_after(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(InterruptedStageError, match="step 2 is saved"):
            job.run()
    assert checkpoint_steps(job) == [2]
    with monkeypatch.context() as patch:
        stop_after(patch, 5, crash)
        with pytest.raises(SimulatedCrash):
            job.run()
    assert checkpoint_steps(job) == [2, 3]
    result = job.run()
    assert result.training is not None
    assert result.training.resumed_from_step == 3
    assert job.attempt_file("adapter.safetensors") == uninterrupted(**SETTINGS)
    assert [record["step"] for record in job.records()] == list(range(1, 10))
    assert checkpoint_steps(job) == [6, 9]


def test_a_later_attempt_publishes_the_previews_of_earlier_ones(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The folder of the result holds every file that its manifest and its model card name, and can be downloaded."""
    job = make_job(
        maxSteps=5, preview={"numInferenceSteps": 1, "everySteps": 1}, checkpoint={"everySteps": 1}
    )
    first = job.config.keys.attempt(1)
    with monkeypatch.context() as patch:
        stop_after(patch, 4, crash)
        with pytest.raises(SimulatedCrash):
            job.run()
    later = job.with_config(attempt=2)
    job.store.output.put(f"{first}preview-000001-00.png", b"changed")
    job.store.output.remove(f"{first}preview-000002-00.png")
    later.run()
    published = download_adapter(job.store.output, job.config.keys.manifest(2), tmp_path)
    assert [(preview.step, preview.key) for preview in published.previews] == [
        (step, f"{job.config.keys.attempt(2)}preview-{step:06d}-00.png") for step in (3, 4, 5)
    ]
    names = {path.name for path in tmp_path.glob("preview-*")}
    assert names == {f"preview-00000{step}-00.png" for step in (3, 4, 5)} | {"preview-000005-00-base.png"}
    card = (tmp_path / "README.md").read_text()
    assert set(re.findall(r"preview-[\w-]+\.png", card)) <= names


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    make_job: JobMaker, uninterrupted: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(**SETTINGS)
    with monkeypatch.context() as patch:
        stop_after(patch, 8, crash)
        with pytest.raises(SimulatedCrash):
            job.run()
    key = job.config.keys.checkpoint(6) + "weights.safetensors"
    data = bytearray(job.store.output.get(key))
    data[len(data) // 2] ^= 1
    job.store.output.put(key, bytes(data))
    # One is truncated, and one has other inputs.
    job.store.output.put(job.config.keys.checkpoint(7) + "weights.safetensors", b"half")
    manifest = job.store.output.get(job.config.keys.checkpoint_manifest(6))
    other = manifest.replace(job.config.input_hash.encode(), b"sha256:other")
    assert other != manifest
    job.store.output.put(job.config.keys.checkpoint_manifest(8), other)
    result = job.run()
    assert result.training is not None
    assert result.training.resumed_from_step == 3
    assert job.attempt_file("adapter.safetensors") == uninterrupted(**SETTINGS)


def test_a_published_file_with_a_flipped_bit_fails_the_job(make_job: JobMaker) -> None:
    job = make_job(maxSteps=2)
    job.run()
    key = job.config.keys.attempt(1) + "adapter.safetensors"
    whole = job.store.output.get(key)
    job.store.output.put(key, whole[:-1] + bytes([whole[-1] ^ 1]))
    result = job.run()
    assert result.training is not None
    assert result.training.resumed_from_step == 2
    assert job.attempt_file("adapter.safetensors") == whole


def test_a_loss_that_is_not_finite_ends_the_job_unpublished(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(maxSteps=8, checkpoint={"everySteps": 1, "keepLast": 9})
    real = loop.accumulate

    def accumulate(state: loop.TrainState, number: int) -> torch.Tensor:
        if number == 1:
            next(iter(state.parameters.values())).data.fill_(float("nan"))
        return real(state, number)

    monkeypatch.setattr(loop, "accumulate", accumulate)
    with pytest.raises(StageError, match=r"since step 2 at learning rate 0\.001") as caught:
        job.run()
    assert caught.value.reason == Reason.DIVERGED
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert not job.store.output.exists(job.config.keys.manifest(1))
    assert checkpoint_steps(job) == [1]


def test_an_earlier_attempts_adapter_is_used_if_its_inputs_are_the_same(make_job: JobMaker) -> None:
    job = make_job(maxSteps=1)
    first = job.run()
    later = job.with_config(attempt=3).run()
    assert later.adapter == first.adapter
    assert not job.store.output.list(job.config.keys.attempt(3), 10), "nothing was trained"
    other = job.with_config(attempt=4, input_hash="sha256:" + "0" * 64).run()
    assert other.adapter is not None
    assert other.adapter.manifest_key == job.config.keys.manifest(4)


def launch(job: Job) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "lora_trainer", "launch", "--config", str(job.config_file())],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_the_launcher_passes_signals_on_and_keeps_exit_codes(make_job: JobMaker) -> None:
    job = make_job(maxSteps=2000, checkpoint={"everySteps": 2, "keepLast": 1})
    process = launch(job)
    deadline = time.monotonic() + 120
    while not checkpoint_steps(job):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED, log.decode()
    assert b"had defaults used instead" not in log
    result = decode_result((job.folder / "termination-log").read_text())
    assert result is not None
    assert result.outcome == Outcome.INTERRUPTED
    assert checkpoint_steps(job)


def test_the_launcher_keeps_permanent_exit_codes(make_job: JobMaker) -> None:
    process = launch(make_job().with_config(captions_sha256="0" * 64))
    process.communicate(timeout=120)
    assert process.returncode == ExitCode.BAD_DATA
