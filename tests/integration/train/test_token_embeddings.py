"""Token embeddings (pivotal tuning): the definition, resuming, the published files, and how other programs read them."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load, load_file

from lora_api.manifest import sha256_hex
from lora_api.reasons import Reason
from lora_trainer.demo.adapters import fetch_adapter, fetch_embeddings
from lora_trainer.demo.catalog import shared_token
from lora_trainer.demo.checkpoints import embeddings_of as embeddings_of_checkpoint
from lora_trainer.demo.checkpoints import fetch_checkpoint, list_checkpoints
from lora_trainer.demo.generation_request import AppliedAdapter, GenerationRequest
from lora_trainer.demo.image_generator import ImageGenerator
from lora_trainer.errors import BadConfigurationError, BadDataError
from lora_trainer.train.model.base_model import BaseModel
from lora_trainer.train.model.token_embeddings import steps_of
from tests.integration.train.conftest import Job, JobMaker
from tests.integration.train.test_options import interrupt_after
from tests.integration.train.test_training import generate_preview, instance_samples, loaded
from tests.support import readers
from tests.support.reference_trainer import PivotalReference, generator_for

TOKENS: dict[str, Any] = {"train": True, "learningRate": "1e-2"}
NEW = ["<s0>", "<s1>"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:`torch_dtype`:FutureWarning")


def embeddings_of(job: Job) -> dict[str, torch.Tensor]:
    return load(job.attempt_file("embeddings.safetensors"))


def folder_of(job: Job) -> Path:
    return job.folder / "work" / "attempt-1"


def sides_of(pipeline: StableDiffusionXLPipeline) -> list[tuple[str, Any, Any]]:
    """Return the names of the matrices with the tokenizers and text encoders that they belong to."""
    return [
        ("clip_l", pipeline.tokenizer, pipeline.text_encoder),
        ("clip_g", pipeline.tokenizer_2, pipeline.text_encoder_2),
    ]


@pytest.mark.parametrize(
    "change",
    [{}, {"stopAfter": "1", "tokens": 1}, {"stopAfter": "0.01", "tokens": 3}],
    ids=["pivot at half", "to the end", "one step"],
)
def test_the_training_is_that_of_the_definition(
    make_job: JobMaker, tiny_sdxl: Path, clean_images: list[bytes], change: dict[str, Any]
) -> None:
    job = make_job(maxSteps=9, tokenEmbeddings={**TOKENS, **change})
    job.run()
    training = job.config.spec.training
    stop = {"0.5": 5, "1": 9, "0.01": 1}[str(training.token_embeddings.stop_after)]
    assert steps_of(training) == stop
    reference = PivotalReference(tiny_sdxl, instance_samples(clean_images), training, "CUS", stop)
    expected = [reference.step(number) for number in range(9)]
    np.testing.assert_allclose([record["loss"] for record in job.records()], expected, atol=1e-4, rtol=0)
    trained = embeddings_of(job)
    for key, matrix, original in zip(
        ("clip_l", "clip_g"), reference.matrices, reference.originals, strict=True
    ):
        rows = matrix.detach()[-training.token_embeddings.tokens :]
        start = original[-training.token_embeddings.tokens :]
        # Adam makes full steps of gradients of almost zero, whose signs are rounding errors.
        moved = (rows - start).abs()
        close = (trained[key] - rows).abs() <= 1e-4 + 1e-2 * moved
        assert close.float().mean() > 0.95
        assert moved.max() > 1e-3


def test_random_starts_have_the_deviation_of_the_model_and_the_initializer_those_of_its_words(
    make_job: JobMaker, tiny_sdxl: Path
) -> None:
    still = {**TOKENS, "learningRate": "1e-9"}
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    for settings in ({"tokens": 8}, {"tokens": 3, "initializer": "white statue"}):
        job = make_job(maxSteps=1, tokenEmbeddings={**still, **settings})
        job.run()
        for key, encoder in (("clip_l", pipeline.text_encoder), ("clip_g", pipeline.text_encoder_2)):
            rows, own = embeddings_of(job)[key], encoder.get_input_embeddings().weight.data
            if "initializer" not in settings:
                assert rows.std() == pytest.approx(float(own.std()), rel=0.15)
                continue
            words = pipeline.tokenizer("white statue white", add_special_tokens=False).input_ids
            # The step brings their deviation closer to that of all words.
            scaled = own[words] * (own.std() / own[words].std()) ** 0.1
            torch.testing.assert_close(rows, scaled, atol=1e-6, rtol=1e-5)


def test_an_initializer_that_does_not_fit_is_refused(make_job: JobMaker) -> None:
    for words, message in (("a white statue", "has 3 tokens, and there are 2 new ones"), (" ", "no token")):
        with pytest.raises(BadConfigurationError, match=message) as refused:
            make_job(tokenEmbeddings={**TOKENS, "initializer": words}).run()
        assert str(refused.value).startswith("training.tokenEmbeddings.initializer")


def test_captions_without_the_token_are_refused(make_job: JobMaker) -> None:
    lines = [{"file_name": f"{index:03d}.png", "text": "a photo of CUSP, a statue"} for index in range(5)]
    with pytest.raises(BadDataError, match="no caption has the token 'CUS'"):
        make_job(lines, tokenEmbeddings=TOKENS).run()


def test_captions_that_become_too_long_are_named(
    make_job: JobMaker, caplog: pytest.LogCaptureFixture
) -> None:
    # CUS has three tokens in the small model's tokenizer, with start and end 77.
    text = f"CUS {'white ' * 72}".strip()
    lines = [{"file_name": f"{index:03d}.png", "text": text} for index in range(5)]
    make_job(lines, maxSteps=1, tokenEmbeddings={**TOKENS, "tokens": 3}).run()
    assert "do not see the end" not in caplog.text
    make_job(lines, maxSteps=1, tokenEmbeddings={**TOKENS, "tokens": 4}).run()
    assert "do not see the end of 1 captions, such as 'CUS white" in caplog.text


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "AdamW8bit": {"optimizer": "AdamW8bit", "rank": 80},
    "Prodigy": {"optimizer": "Prodigy", "lrScheduler": "cosine", "tokenEmbeddings": {"train": True}},
    "Adafactor, average": {"optimizer": "Adafactor", "emaDecay": "0.9"},
    "CAME": {"optimizer": "CAME", "lrWarmupSteps": 1},
    "prior": {"priorPreservation": {"enabled": True, "numClassImages": 2}, "batchSize": 2},
    "best step": {
        "validation": {"everySteps": 1, "samples": 2, "publish": "LowestHeldOutLoss"},
        "emaDecay": "0.5",
    },
    "DoRA in bf16": {"mixedPrecision": "bf16", "adapter": {"useDoRA": True}},
    "kohya's LoKr": {"adapter": {"type": "LoKr"}},
}


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_training_publishes_the_same_bytes(
    make_job: JobMaker, shallow_sdxl: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "maxSteps": 6,
        "tokenEmbeddings": TOKENS,
        "preview": {"numInferenceSteps": 1},
        **CASES[name],
        "model": shallow_sdxl,
    }
    output = {"formats": ["kohya"]} if "type" in settings.get("adapter", {}) else {}
    file = "adapter-kohya.safetensors" if output else "adapter.safetensors"
    whole = make_job(output=output, **settings)
    whole.run()
    for step in (2, 4) if name == "plain" else (4,):  # before and after the embeddings' last step
        job = make_job(output=output, checkpoint={"everySteps": 1}, **settings)
        interrupt_after(monkeypatch, step)
        with pytest.raises(KeyboardInterrupt):
            job.run()
        monkeypatch.undo()
        job.run()
        assert job.attempt_file("embeddings.safetensors") == whole.attempt_file("embeddings.safetensors")
        one, other = (load(each.attempt_file(file)) for each in (job, whole))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_without_new_tokens_the_embeddings_neither_exist_nor_change_the_run(make_job: JobMaker) -> None:
    job = make_job()
    job.run()
    assert job.manifest().embeddings is None
    names = [entry.key.rpartition("/")[2] for entry in job.manifest().files]
    assert "embeddings.safetensors" not in names


@pytest.mark.parametrize("optimizer", ["AdamW", "AdamW8bit", "Adafactor", "CAME", "Prodigy"])
def test_every_optimizer_stops_at_the_last_step(make_job: JobMaker, optimizer: str) -> None:
    tokens = {"train": True, "stopAfter": "0.2"} | (
        {} if optimizer == "Prodigy" else {"learningRate": "1e-2"}
    )
    published = []
    for steps in (5, 10):
        share = {"stopAfter": "0.4" if steps == 5 else "0.2"}
        job = make_job(maxSteps=steps, optimizer=optimizer, tokenEmbeddings={**tokens, **share})
        job.run()
        published.append(embeddings_of(job))
    for key, rows in published[0].items():
        later = published[1][key]
        # Every step brings their deviation closer to the model's; nothing else changes.
        torch.testing.assert_close(later / later.std(), rows / rows.std())


@pytest.mark.parametrize("end", ["tokenizer's", "SDXL's"])
def test_diffusers_and_comfyui_read_the_published_embeddings(
    make_job: JobMaker, tiny_sdxl: Path, tmp_path: Path, end: str
) -> None:
    model = tiny_sdxl
    if end == "SDXL's":  # its eos_token_id is 2: the pooled embedding is that of the highest token id
        model = shutil.copytree(tiny_sdxl, tmp_path / f"as-sdxl-{tmp_path.parent.name}")
        for name in ("text_encoder", "text_encoder_2"):
            path = model / name / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 2}))
    job = make_job(model=model, maxSteps=6, learningRate="1e-2", tokenEmbeddings=TOKENS)
    assert job.run().reason == Reason.TRAINED
    path, trained = folder_of(job) / "embeddings.safetensors", embeddings_of(job)
    assert {key: tuple(rows.shape) for key, rows in trained.items()} == {"clip_l": (2, 32), "clip_g": (2, 32)}
    assert all(rows.dtype == torch.float32 for rows in trained.values())

    pipeline = loaded(model, folder_of(job) / "adapter.safetensors")
    literal = generate_preview(pipeline)
    for key, tokenizer, encoder in sides_of(pipeline):
        # As the script's own model card does it.
        pipeline.load_textual_inversion(trained[key], token=NEW, text_encoder=encoder, tokenizer=tokenizer)
        ids = tokenizer.convert_tokens_to_ids(NEW)
        assert torch.equal(encoder.get_input_embeddings().weight[ids], trained[key])
        # ComfyUI's encoders read the same file, each its own matrix.
        width = encoder.config.hidden_size
        assert torch.equal(readers.comfyui_embedding(path, width, key), trained[key])
    np.testing.assert_allclose(literal, generate_preview(pipeline), atol=1e-6)  # it has no new token

    # The trainer's own preview is the image that diffusers generates with both files.
    generated = pipeline(
        "a photo of <s0><s1> statue",
        num_inference_steps=2,
        guidance_scale=5.0,
        height=64,
        width=64,
        generator=generator_for(0, "preview"),
    ).images[0]
    preview = Image.open(io.BytesIO(job.attempt_file("preview-000006-00.png")))
    np.testing.assert_allclose(np.array(generated, float), np.array(preview, float), atol=1)
    assert np.abs(np.array(preview, float) / 255 - literal).max() > 0.01
    with safe_open(folder_of(job) / "adapter.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["token_embeddings"] == "<s0><s1>"
    assert metadata["modelspec.trigger_phrase"] == "<s0><s1> statue"
    assert metadata["modelspec.implementation"] == "https://github.com/huggingface/diffusers"
    assert metadata["lora_training.base_model"]
    with safe_open(folder_of(job) / "adapter-kohya.safetensors", "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "<s0><s1> statue"


def test_the_snippet_of_the_card_runs_as_it_is(
    make_job: JobMaker, tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(maxSteps=2, tokenEmbeddings=TOKENS)
    job.run()
    card = job.attempt_file("README.md").decode()
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    name = tiny_sdxl.name
    (folder_of(job) / name).symlink_to(tiny_sdxl)
    monkeypatch.chdir(folder_of(job))
    exec(code, {})
    assert (folder_of(job) / "image.png").is_file()
    assert "prompts need `embeddings.safetensors`" in card
    assert "`embedding:CUS` in place of `<s0><s1>`" in card
    assert 'load_file("embeddings.safetensors")' in job.attempt_file("report.html").decode().replace(
        "&#34;", '"'
    )


def test_the_manifest_names_the_embeddings(make_job: JobMaker) -> None:
    job = make_job(tokenEmbeddings=TOKENS, output={"formats": ["kohya"]})
    job.run()
    manifest = job.manifest()
    assert manifest.embeddings is not None
    assert manifest.embeddings.tokens == NEW
    entry = next(entry for entry in manifest.files if entry.key == manifest.embeddings.key)
    assert entry.sha256 == sha256_hex(job.attempt_file("embeddings.safetensors"))
    manifest.check(job.config.keys.manifest(1))


def test_an_adapter_with_embeddings_is_no_start_of_another_training(make_job: JobMaker) -> None:
    first = make_job(tokenEmbeddings=TOKENS)
    first.run()
    file = first.config.keys.attempt(1) + "adapter.safetensors"
    start = {"key": file, "sha256": sha256_hex(first.store.output.get(file))}
    with pytest.raises(BadConfigurationError, match="was trained with token embeddings"):
        make_job(**{"from": start}).run()


def test_variants_have_embeddings_of_their_own(make_job: JobMaker) -> None:
    settings: dict[str, Any] = {
        "validation": {"everySteps": 2, "samples": 2},
        "tokenEmbeddings": TOKENS,
    }
    variants = [{"name": "one", "seed": 1}, {"name": "two", "seed": 2}]
    job = make_job(variants=variants, **settings)
    job.run()
    chosen = next(result for result in job.manifest().variants if result.published)
    alone = make_job(seed=chosen.variant.seed, **settings)
    alone.run()
    assert job.attempt_file("embeddings.safetensors") == alone.attempt_file("embeddings.safetensors")


def test_previews_of_the_base_model_have_the_token_itself(make_job: JobMaker) -> None:
    plain, job = make_job(), make_job(tokenEmbeddings=TOKENS)
    for each in (plain, job):
        each.run()
    base, trained = (
        [each.attempt_file(f"preview-000004-00{suffix}.png") for suffix in ("-base", "")]
        for each in (plain, job)
    )
    assert base[0] == trained[0]
    assert base[1] != trained[1]


def test_the_page_generate_puts_the_new_tokens_into_prompts(
    make_job: JobMaker, tiny_sdxl: Path, tmp_path: Path
) -> None:
    checkpoint = {"everySteps": 2, "keepLast": 5}
    job = make_job(learningRate="1e-2", tokenEmbeddings=TOKENS, checkpoint=checkpoint)
    job.run()
    bucket, manifest = job.store.output, job.manifest()
    adapter = fetch_adapter(bucket, manifest, tmp_path)
    embeddings = fetch_embeddings(bucket, manifest, tmp_path)
    assert embeddings is not None
    request = GenerationRequest("a photo of CUS statue", "CUS", seed=0, steps=2, guidance=5.0, resolution=64)
    generator = ImageGenerator(BaseModel(tiny_sdxl, "tiny"))

    def generate(*applied: AppliedAdapter) -> Image.Image:
        return generator.generate(request, applied, lambda done: None)

    base = generate()
    together = generate(AppliedAdapter(adapter, 1.0, embeddings, "CUS"))
    literal = generate(AppliedAdapter(adapter, 1.0))
    assert len({image.tobytes() for image in (base, together, literal)}) == 3
    assert generate().tobytes() == base.tobytes()  # the new tokens stay loaded, without effect
    pipeline = loaded(tiny_sdxl, adapter)
    for key, tokenizer, encoder in sides_of(pipeline):
        rows = embeddings_of(job)[key]
        pipeline.load_textual_inversion(rows, token=NEW, text_encoder=encoder, tokenizer=tokenizer)
    expected = pipeline(
        "a photo of <s0><s1> statue",
        negative_prompt="<s0><s1>",
        num_inference_steps=2,
        guidance_scale=5.0,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    np.testing.assert_allclose(np.array(together, float), np.array(expected, float), atol=1)

    assert list_checkpoints(bucket, manifest) == [2]
    path = fetch_checkpoint(bucket, manifest, adapter, 2, tmp_path)
    weights = load(bucket.get(f"{job.config.keys.checkpoint(2)}weights.safetensors"))
    for key, rows in load_file(embeddings_of_checkpoint(path)).items():
        assert torch.equal(rows, weights[f"token_embeddings.{key}"])
        assert not torch.equal(rows, embeddings_of(job)[key])
    assert load_file(path).keys() == load_file(adapter).keys()
    generate(AppliedAdapter(path, 1.0, embeddings_of_checkpoint(path), "CUS"))


def test_two_adapters_whose_tokens_meet_are_not_applied_together(make_job: JobMaker) -> None:
    job, plain = make_job(tokenEmbeddings=TOKENS, maxSteps=1), make_job(maxSteps=1)
    for each in (job, plain):
        each.run()
    first, second = job.manifest(), plain.manifest()
    assert shared_token([first, second]) == "CUS"
    assert shared_token([second, second.model_copy()]) == ""
    assert first.concept is not None
    renamed = second.model_copy(update={"concept": first.concept.model_copy(update={"token": "OTHER"})})
    assert shared_token([first, renamed]) == ""
