"""Tests of the training stage, many of them against a reference implementation of the method.

They are one module because they share the job, the reference and the helpers that compare losses and images.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load

from lora_api.job import InvalidResourceError
from lora_api.keys import reuse_pointer
from lora_api.manifest import Manifest, ReusePointer, sha256_hex
from lora_api.reasons import Reason
from lora_trainer.errors import BadConfigurationError, BadDataError
from lora_trainer.train.data import encode
from lora_trainer.train.export.kohya import kohya_name, read_weight
from lora_trainer.train.model.targets import ATTENTION
from tests.integration.train.conftest import Job, JobMaker
from tests.support.reference_trainer import Reference


def instance_samples(images: list[bytes]) -> list[tuple[bytes, str]]:
    return [(image, f"a photo of CUS statue, view {index}") for index, image in enumerate(images)]


def assert_losses(job: Job, reference: Reference) -> None:
    losses = [record["loss"] for record in job.records()]
    expected = [reference.step(number) for number in range(len(losses))]
    np.testing.assert_allclose(losses, expected, atol=1e-4, rtol=0)
    assert len(set(losses)) == len(losses) == job.config.spec.training.max_steps


@pytest.mark.parametrize(
    "settings",
    [
        {"maxSteps": 50, "alpha": 8},
        {
            "maxSteps": 6,
            "batchSize": 2,
            "gradientAccumulationSteps": 2,
            "lrScheduler": "cosine",
            "lrWarmupSteps": 2,
            "snrGamma": "0",
            "gradientCheckpointing": "Always",
            "seed": 7,
        },
        {"method": "LoRA", "maxSteps": 50},
        {"method": "LoRA", "maxSteps": 6, "noiseOffset": "0.2", "captionDropout": "0.4"},
        {"textEncoder": {"train": True, "learningRate": "1e-2"}, "maxSteps": 6},
    ],
    ids=["plain", "accumulated", "LoRA", "offset-and-dropout", "text-encoders"],
)
def test_losses_are_those_of_the_definition(
    make_job: JobMaker, tiny_sdxl: Path, clean_images: list[bytes], settings: dict[str, object]
) -> None:
    job = make_job(**settings)
    job.run()
    assert_losses(job, Reference(tiny_sdxl, instance_samples(clean_images), job.config.spec.training))


def test_what_is_cached_is_not_encoded_again_and_gives_the_same_losses(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_job(), make_job()
    first.run()
    second = second.with_config(work_dir=first.config.work_dir)
    for name in ("encode_image", "encode_text"):
        monkeypatch.setattr(encode, name, None)
    second.run()
    assert [r["loss"] for r in first.records()] == [r["loss"] for r in second.records()]


def test_a_velocity_model_is_trained_on_velocities(
    make_job: JobMaker, tiny_velocity: Path, clean_images: list[bytes]
) -> None:
    job = make_job(model=tiny_velocity, maxSteps=5)
    job.run()
    assert_losses(job, Reference(tiny_velocity, instance_samples(clean_images), job.config.spec.training))


def test_prior_preservation_trains_on_class_images_that_are_kept(
    make_job: JobMaker, tiny_sdxl: Path, clean_images: list[bytes]
) -> None:
    prior = {"enabled": True, "numClassImages": 3, "weight": "0.5", "classPrompt": "a small statue"}
    job = make_job(maxSteps=50, priorPreservation=prior, seed=int.from_bytes(os.urandom(3)))
    folder = "studio/.class-images/"
    before = {item.key for item in job.store.output.list(folder, 1000)}
    job.run()
    generated = [item for item in job.store.output.list(folder, 1000) if item.key not in before]
    images = [job.store.output.get(item.key) for item in generated]
    assert len(set(images)) == 3
    reference = Reference(
        tiny_sdxl,
        instance_samples(clean_images),
        job.config.spec.training,
        class_samples=[(image, "a small statue") for image in images],
    )
    assert_losses(job, reference)

    # Another job of the namespace uses the existing class images and generates the missing ones.
    job.store.output.remove(generated[1].key)
    seed = job.config.spec.training.seed
    other = make_job(maxSteps=1, priorPreservation=prior, seed=seed)
    other.run()
    again = [item for item in job.store.output.list(folder, 1000) if item.key not in before]
    assert [(item.key, item.etag) for item in again] == [(item.key, item.etag) for item in generated]
    assert (again[0], again[2]) == (generated[0], generated[2])  # their times too

    # Another guidance scale gives other images.
    make_job(maxSteps=1, priorPreservation=prior | {"guidanceScale": "1.5"}, seed=seed).run()
    guided = [item for item in job.store.output.list(folder, 1000) if item.key not in before]
    assert len(guided) == 6
    assert len({item.etag for item in guided}) == 6


def test_class_images_of_a_style_have_its_opening_without_the_token(make_job: JobMaker) -> None:
    prior = {"enabled": True, "numClassImages": 2}
    seed = int.from_bytes(os.urandom(3))
    style = make_job(
        concept={"token": "CUS", "className": "ink", "type": "Style"},
        maxSteps=1,
        priorPreservation=prior,
        seed=seed,
    )
    folder = "studio/.class-images/"
    before = {item.key for item in style.store.output.list(folder, 1000)}
    style.run()
    generated = {item.key for item in style.store.output.list(folder, 1000)} - before
    assert len(generated) == 2
    # Keys of class images depend on the prompt, so a job that names the same prompt generates no others.
    named = prior | {"classPrompt": "an image in ink style"}
    make_job(maxSteps=1, priorPreservation=named, seed=seed).run()
    assert {item.key for item in style.store.output.list(folder, 1000)} - before == generated


def generate_preview(pipeline: StableDiffusionXLPipeline) -> np.ndarray:
    generated = pipeline(
        "a photo of CUS statue",
        height=64,
        width=64,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    )
    return generated.images[0]


def loaded(folder: Path, adapter: Path) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(adapter)
    return pipeline


@pytest.mark.parametrize("train_text", [False, True], ids=["unet", "text-encoders"])
def test_both_files_give_the_image_of_the_trained_model(
    make_job: JobMaker, tiny_sdxl: Path, train_text: bool
) -> None:
    # Both files must have the effect of the scale alpha / rank = 2.
    text = {"textEncoder": {"train": True, "learningRate": "1e-2"}} if train_text else {}
    job = make_job(alpha=8, maxSteps=6, **text)
    assert job.run().reason == Reason.TRAINED
    generated = []
    for name in ("adapter.safetensors", "adapter-kohya.safetensors"):
        path = job.folder / "work" / "attempt-1" / name
        assert path.read_bytes() == job.attempt_file(name)
        pipeline = loaded(tiny_sdxl, path)
        generated.append(generate_preview(pipeline))
        if train_text:
            pipeline.text_encoder.disable_adapters()
            pipeline.text_encoder_2.disable_adapters()
            assert np.abs(generated[-1] - generate_preview(pipeline)).max() > 1e-4
            pipeline.text_encoder.enable_adapters()
            pipeline.text_encoder_2.enable_adapters()
        pipeline.unload_lora_weights()
        assert np.abs(generated[-1] - generate_preview(pipeline)).max() > 1e-3
    np.testing.assert_allclose(generated[0], generated[1], atol=1e-5)

    # The reference's model generates the same image.
    reference = Reference(tiny_sdxl, instance_samples(pictures_of(job)), job.config.spec.training)
    for number in range(6):
        reference.step(number)
    trained = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, unet=reference.unet)
    trained.text_encoder, trained.text_encoder_2 = reference.encoders
    trained.set_progress_bar_config(disable=True)
    np.testing.assert_allclose(generated[0], generate_preview(trained), atol=1e-3)


def read_from_kohya(folder: Path, adapter: Path) -> StableDiffusionXLPipeline:
    """Return the base pipeline with the weights of a kohya file, merged by ComfyUI's rules."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    tensors, read = load(adapter.read_bytes()), 0
    for component in ("unet", "text_encoder", "text_encoder_2"):
        for name, module in getattr(pipeline, component).named_modules():
            if isinstance(module, torch.nn.Linear) and name.endswith(
                (*ATTENTION["unet"], *ATTENTION["text_encoder"])
            ):
                base = kohya_name(component, name, pipeline.unet.config.layers_per_block) + "."
                own = {key.removeprefix(base): t for key, t in tensors.items() if key.startswith(base)}
                module.weight.data = read_weight(module.weight.data, own)
                read += len(own)
    assert read == len(tensors)
    return pipeline


@pytest.mark.parametrize("kind", ["useRSLoRA", "useDoRA"])
def test_both_files_of_other_kinds_give_the_same_image(
    make_job: JobMaker, tiny_sdxl: Path, kind: str
) -> None:
    text = {"train": True, "learningRate": "1e-2"}
    job = make_job(adapter={kind: True}, alpha=8, maxSteps=4, learningRate="1e-2", textEncoder=text)
    job.run()
    folder = job.folder / "work" / "attempt-1"
    generated = generate_preview(loaded(tiny_sdxl, folder / "adapter.safetensors"))
    same = generate_preview(read_from_kohya(tiny_sdxl, folder / "adapter-kohya.safetensors"))
    np.testing.assert_allclose(generated, same, atol=1e-5)
    plain = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    plain.set_progress_bar_config(disable=True)
    assert np.abs(generated - generate_preview(plain)).max() > 1e-2


def pictures_of(job: Job) -> list[bytes]:
    return [job.store.output.get(job.config.keys.image(index)) for index in range(5)]


def test_every_b_matrix_moved(make_job: JobMaker) -> None:
    job = make_job(maxSteps=3)
    job.run()
    matrices = {k: v for k, v in load(job.attempt_file("adapter.safetensors")).items() if "lora_B" in k}
    assert len(matrices) == 96
    assert all(value.abs().max() > 0 for value in matrices.values())
    assert all(value.dtype == torch.float32 for value in matrices.values())


def test_publication_is_complete_and_reused(make_job: JobMaker) -> None:
    job = make_job(preview={"numInferenceSteps": 2, "everySteps": 2, "prompts": ["a", "b"]})
    result = job.run()
    bucket, keys = job.store.output, job.config.keys
    data = bucket.get(keys.manifest(1))
    manifest = Manifest.model_validate_json(data)
    assert result.adapter == manifest.adapter
    assert manifest.adapter.format == "diffusers"
    assert manifest.adapter.uri == f"s3://loras/{keys.attempt(1)}adapter.safetensors"
    assert manifest.adapter.sha256 == sha256_hex(job.attempt_file("adapter.safetensors"))
    assert [(preview.step, preview.prompt) for preview in manifest.previews] == [
        (2, "a"),
        (2, "b"),
        (4, "a"),
        (4, "b"),
    ]
    names = {entry.key.removeprefix(keys.attempt(1)) for entry in manifest.files}
    assert names == {
        "adapter.safetensors",
        "adapter-kohya.safetensors",
        "metrics.jsonl",
        "README.md",
        "events.out.tfevents.training",
        "report.html",
        "previews.png",
        *(f"preview-{step}-{index}.png" for step in ("000002", "000004") for index in ("00", "01")),
        *(f"preview-000004-{index}-base.png" for index in ("00", "01")),
    }
    assert all(bucket.holds(entry) for entry in manifest.files)
    pointer = ReusePointer.model_validate_json(bucket.get(reuse_pointer("studio", job.config.input_hash)))
    assert pointer == ReusePointer(manifest_key=keys.manifest(1), sha256=sha256_hex(data))

    # The pod may be lost after publishing. The next one returns the same result without training.
    bucket.remove(reuse_pointer("studio", job.config.input_hash))
    bucket.remove(keys.captions)
    again = job.run()
    assert again.adapter == result.adapter
    assert bucket.exists(reuse_pointer("studio", job.config.input_hash))


def test_captions_must_be_the_approved_ones(make_job: JobMaker) -> None:
    job = make_job().with_config(captions_sha256="0" * 64)
    with pytest.raises(BadDataError, match="has changed since it was approved"):
        job.run()


def test_a_crop_box_is_used_where_the_job_says_smart(make_job: JobMaker) -> None:
    def line(crop: list[float] | None) -> dict[str, object]:
        return {"file_name": "000.png", "text": "a", "crop": crop}

    whole = make_job([line(None)], maxSteps=2)
    left = make_job([line([0.0, 0.0, 0.5, 0.5])], maxSteps=2)
    centre = make_job([line([0.0, 0.0, 0.5, 0.5])], maxSteps=2, crop="Center")
    for job in (whole, left, centre):
        job.run()
    losses = [[record["loss"] for record in job.records()] for job in (whole, left, centre)]
    assert losses[0] == losses[2]
    assert losses[0] != losses[1]


def test_the_log_has_the_memory_plan_line_by_line(
    make_job: JobMaker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    make_job(maxSteps=1).run()
    plan = [record.message for record in caplog.records if record.message.startswith("memory: ")]
    assert any("gradient checkpointing: " in line for line in plan)
    assert not any("\n" in line for line in plan)


def test_fp16_on_a_cpu_is_refused(make_job: JobMaker) -> None:
    with pytest.raises(InvalidResourceError, match="fp32 or bf16"):
        make_job(mixedPrecision="fp16")


@pytest.mark.parametrize("optimizer", ["AdamW", "AdamW8bit"])
def test_bf16_moves_as_many_entries_as_float32(make_job: JobMaker, optimizer: str) -> None:
    moved = []
    for precision in ("fp32", "bf16"):
        job = make_job(
            mixedPrecision=precision, optimizer=optimizer, maxSteps=3, learningRate="1e-4", rank=64
        )
        job.run()
        tensors = load(job.attempt_file("adapter.safetensors"))
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        moved.append(sum(int((t != 0).sum()) for name, t in tensors.items() if "lora_B" in name))
    assert moved[1] >= 0.99 * moved[0] > 0


def test_a_missing_model_folder_is_named(make_job: JobMaker) -> None:
    job = make_job()
    other = job.config.base_model.model_copy(update={"key": "models/none/"})
    with pytest.raises(
        BadConfigurationError, match=r"models/none/ is not a diffusers pipeline .*: name a folder"
    ):
        job.with_config(base_model=other).run()


def test_dreambooth_extract_fine_tunes_and_extracts(
    make_job: JobMaker, tiny_sdxl: Path, clean_images: list[bytes]
) -> None:
    settings = {"method": "DreamBoothExtract", "maxSteps": 4, "rank": 32, "alpha": 8}
    job = make_job(**settings)
    job.run()
    layers = json.loads(job.attempt_file("layers.json"))
    tensors = load(job.attempt_file("adapter.safetensors"))
    assert {name.split(".lora_")[0].removeprefix("unet.") for name in tensors} == set(layers["layers"])
    assert any(".ff." in name for name in tensors)
    assert 0 < layers["outputError"] < 0.05
    assert all(0.5 < layer["energyKept"] <= 1.0001 for layer in layers["layers"].values())
    path = job.folder / "work" / "attempt-1"
    generated = generate_preview(loaded(tiny_sdxl, path / "adapter.safetensors"))
    np.testing.assert_allclose(
        generated, generate_preview(loaded(tiny_sdxl, path / "adapter-kohya.safetensors")), atol=1e-5
    )
    # The first loss is that of the base model.
    reference = Reference(tiny_sdxl, instance_samples(clean_images), job.config.spec.training)
    assert job.records()[0]["loss"] == pytest.approx(reference.step(0), abs=1e-4)
    assert job.records()[-1]["loss"] != pytest.approx(reference.step(3), abs=1e-4)


def test_aspect_buckets_keep_each_images_shape(
    make_job: JobMaker, tiny_sdxl: Path, clean_images: list[bytes]
) -> None:
    wide = Image.open(io.BytesIO(clean_images[0])).resize((160, 90))
    out = io.BytesIO()
    wide.save(out, "png")
    images = [out.getvalue(), *clean_images[1:]]
    job = make_job(crop="Buckets", batchSize=3, maxSteps=3)
    job.store.output.put(job.config.keys.image(0), images[0])
    job.run()
    assert_losses(job, Reference(tiny_sdxl, instance_samples(images), job.config.spec.training))


def test_a_quantized_base_trains_nearly_the_same_adapter(make_job: JobMaker) -> None:
    settings = {"maxSteps": 4, "mixedPrecision": "bf16"}
    whole = make_job(**settings)
    whole.run()
    expected = np.array([record["loss"] for record in whole.records()])
    for kind, near in (("NF4", 0.3), ("Int8", 0.03)):
        small = make_job(quantizeBase=kind, **settings)
        small.run()
        losses = np.array([record["loss"] for record in small.records()])
        assert 0 < np.abs(losses - expected).max() < near
        matrices = load(small.attempt_file("adapter.safetensors"))
        assert len(matrices) == 192
        assert all(value.dtype == torch.float32 for value in matrices.values())
        assert all(value.abs().max() > 0 for value in matrices.values())


@pytest.mark.parametrize("method", ["LoRA", "DreamBoothExtract"])
def test_a_vae_that_needs_float32_runs_in_float32(
    make_job: JobMaker, tiny_sdxl: Path, tmp_path: Path, method: str
) -> None:
    folder = tmp_path / "upcast"
    shutil.copytree(tiny_sdxl, folder)
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "force_upcast": True}))
    whole, half = (
        make_job(model=folder, method=method, mixedPrecision=precision, maxSteps=1)
        for precision in ("fp32", "bf16")
    )
    whole.run()
    half.run()
    # The latents are the same, so the first losses differ by the UNet's rounding only.
    losses = [job.records()[0]["loss"] for job in (whole, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    generated = Image.open(io.BytesIO(half.attempt_file("preview-000001-00.png")))
    assert generated.size == (64, 64)
    assert max(high - low for low, high in generated.getextrema()) > 20
