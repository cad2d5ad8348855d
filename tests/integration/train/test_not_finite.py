"""Values that are not finite are skipped before the optimizer step, and reported with their origin."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from lora_api.exits import ExitCode
from lora_api.reasons import Reason
from lora_trainer.errors import BadConfigurationError, StageError
from lora_trainer.train import loop
from lora_trainer.train.data import encode
from tests.integration.train.conftest import AdapterMaker, Job, JobMaker
from tests.integration.train.test_resuming import checkpoint_steps

NAN = float("nan")


def poison(
    monkeypatch: pytest.MonkeyPatch, steps: set[int], act: Callable[[loop.TrainState], object]
) -> None:
    """Act after the gradients of some steps, from 1, were computed."""
    real = loop.accumulate

    def accumulate(state: loop.TrainState, number: int) -> torch.Tensor:
        loss = real(state, number)
        if number + 1 in steps:
            act(state)
        return loss

    monkeypatch.setattr(loop, "accumulate", accumulate)


def spoil_gradient(state: loop.TrainState) -> None:
    state.flat.gradient[0] = NAN


def published(job: Job) -> bool:
    return job.store.output.exists(job.config.keys.manifest(1))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_with_a_bad_gradient_is_skipped_and_the_others_count(
    make_job: JobMaker, uninterrupted: AdapterMaker, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    settings = {"maxSteps": 3, "mixedPrecision": precision, "optimizer": "AdamW", "emaDecay": "0.5"}
    job = make_job(**settings)
    poison(monkeypatch, {2}, spoil_gradient)
    assert job.run().reason == Reason.TRAINED
    places = [record["not_finite"] for record in job.records()]
    assert places == [None, "the gradient", None]
    assert [record["gradient_norm"] is None for record in job.records()] == [False, True, False]
    tensors = load_file(job.folder / "work" / "attempt-1" / "adapter.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)


def test_a_last_step_that_is_skipped_does_not_lose_the_others(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(maxSteps=3)
    poison(monkeypatch, {3}, spoil_gradient)
    assert job.run().reason == Reason.TRAINED
    assert checkpoint_steps(job) == [3]


@pytest.mark.parametrize("steps", [{1, 2}, {2, 3, 4}], ids=["every step", "three in a row"])
def test_steps_that_keep_failing_end_the_job_with_the_place_and_advice(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch, steps: set[int]
) -> None:
    job = make_job(maxSteps=2 if steps == {1, 2} else 8)
    poison(monkeypatch, steps, spoil_gradient)
    with pytest.raises(
        StageError, match=rf"the gradient is not finite since step {min(steps)} .*lower"
    ) as caught:
        job.run()
    assert (caught.value.reason, caught.value.exit_code) == (Reason.DIVERGED, ExitCode.BAD_DATA)
    assert "mixedPrecision" not in str(caught.value)  # it is fp32
    assert not published(job)


def test_weights_that_are_not_finite_are_neither_saved_nor_published(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(maxSteps=3, checkpoint={"everySteps": 1, "keepLast": 9})

    def spoil(state: loop.TrainState) -> None:
        next(iter(state.parameters.values())).data.fill_(NAN)

    poison(monkeypatch, {3}, spoil)
    with pytest.raises(StageError, match="the trained weight is not finite"):
        job.run()
    assert checkpoint_steps(job) == [1, 2]
    assert not published(job)


def test_an_embedding_that_is_not_finite_names_its_caption(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = encode.encode_text

    def encode_text(models: object, text: str) -> encode.TextEmbedding:
        embedding = real(models, text)  # type: ignore[arg-type]
        if "view 3" in text:
            embedding.pooled[0] = NAN
        return embedding

    monkeypatch.setattr(encode, "encode_text", encode_text)
    with pytest.raises(BadConfigurationError, match=r"the text embedding of '.*view 3' is not finite"):
        make_job().run()


def test_a_latent_that_is_not_finite_names_its_image_and_not_the_learning_rate(
    make_job: JobMaker, tiny_sdxl: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny-overflowing"
    shutil.copytree(tiny_sdxl, folder)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    weights["encoder.conv_in.weight"] *= 1e30
    weights["encoder.conv_in.bias"].fill_(float("inf"))
    save_file(weights, path)
    assert vae.config.force_upcast is not None
    job = make_job(model=folder)
    with pytest.raises(
        BadConfigurationError, match=r"latent of the image '000\.png' is not finite"
    ) as caught:
        job.run()
    assert "learningRate" not in str(caught.value)


def test_a_weight_of_the_base_model_that_is_not_finite_is_named_and_not_the_learning_rate(
    make_job: JobMaker, tiny_sdxl: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_sdxl, tmp_path / "tiny-damaged"))
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    weights["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"][0, 0] = NAN
    save_file(weights, path)
    with pytest.raises(
        StageError,
        match=r"base model's weight mid_block\S+attn2\.to_k\.weight is not finite .*choose another baseModel",
    ) as caught:
        make_job(model=folder, maxSteps=4).run()
    assert "learningRate" not in str(caught.value)


def test_predicting_noise_on_a_zero_terminal_snr_schedule_trains(
    make_job: JobMaker, tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tiny-zero-snr"
    shutil.copytree(tiny_sdxl, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rescale_betas_zero_snr": True}))
    real = loop.sample_rng

    def at_full_noise(*arguments: object) -> object:
        rng = real(*arguments)  # type: ignore[arg-type]
        return type(rng)(999, rng.posterior, rng.noise, rng.offset, rng.dropout)

    monkeypatch.setattr(loop, "sample_rng", at_full_noise)
    job = make_job(model=folder, maxSteps=2)
    job.run()
    assert [record["not_finite"] for record in job.records()] == [None, None]
    assert all(record["loss"] > 0 for record in job.records())
