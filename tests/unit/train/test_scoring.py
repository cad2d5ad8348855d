"""Scores by embeddings of tiny DINO and CLIP models, and the step that they choose."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
)

from lora_api.job import Concept, Training
from lora_trainer.errors import BadConfigurationError
from lora_trainer.model_cache.selection import encoder_files
from lora_trainer.train.model.tiny import END, tiny_tokenizer
from lora_trainer.train.records import Record, best_step, is_out_of_patience
from lora_trainer.train.sampling.scored_images import scored_prompts, without_token
from lora_trainer.train.scoring import EmbeddingScorer, Scores, relative_score

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_scoring_models(folder: Path) -> tuple[Path, Path]:
    """Write a random DINOv2 and a random CLIP of a few thousand weights, and return their folders."""
    dino, clip = folder / "dino", folder / "clip"
    tokenizer = tiny_tokenizer(END)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Dinov2Model(Dinov2Config(image_size=28, patch_size=14, mlp_ratio=2, **SMALL)).save_pretrained(dino)
        vision = CLIPVisionConfig(image_size=28, patch_size=14, intermediate_size=64, **SMALL)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            intermediate_size=64,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **SMALL,
        )
        config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=32)
        CLIPModel(config).save_pretrained(clip)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(dino)
    processor.save_pretrained(clip)
    tokenizer.save_pretrained(clip)
    return dino, clip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_scoring_models(tmp_path_factory.mktemp("scoring"))


def noise(seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    array = torch.randint(256, (28, 28, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(array)


def test_scores_are_mean_cosines_of_the_models_embeddings(models: tuple[Path, Path]) -> None:
    references, images = [noise(0), noise(1)], [noise(0), noise(2)]
    scorer = EmbeddingScorer(*models, references, torch.device("cpu"))
    same = EmbeddingScorer(*models, [noise(0)], torch.device("cpu")).score([noise(0)], ["a dog"])
    assert same.likeness == pytest.approx(1.0, abs=1e-5)

    scores = scorer.score(images, ["a dog", "a cat"])
    dino, clip = Dinov2Model.from_pretrained(models[0]).eval(), CLIPModel.from_pretrained(models[1]).eval()
    processor, tokenizer = CLIPImageProcessorPil.from_pretrained(models[0]), tiny_tokenizer(END)
    with torch.no_grad():
        vectors = [
            dino(**processor(images=i, return_tensors="pt")).last_hidden_state[0, 0]
            for i in (*references, *images)
        ]
        cosines = [
            float(torch.cosine_similarity(reference, image, dim=0))
            for reference in vectors[:2]
            for image in vectors[2:]
        ]
        logits = [
            float(
                clip(
                    input_ids=torch.tensor([tokenizer(text).input_ids]),
                    pixel_values=processor(images=image, return_tensors="pt").pixel_values,
                ).logits_per_image
            )
            / float(clip.logit_scale.exp())
            for image, text in zip(images, ("a dog", "a cat"), strict=True)
        ]
    assert scores.likeness == pytest.approx(sum(cosines) / 4, abs=1e-5)
    assert scores.fidelity == pytest.approx(sum(logits) / 2, abs=1e-5)


def test_a_model_that_is_no_clip_is_refused(models: tuple[Path, Path]) -> None:
    with pytest.raises(BadConfigurationError, match=r"cannot be loaded|name a CLIP model"):
        EmbeddingScorer(models[0], models[0], [noise(0)], torch.device("cpu"))


def test_likeness_at_the_cost_of_the_prompt_does_not_pay() -> None:
    base = Scores(0.2, 0.3)
    assert relative_score(Scores(0.8, 0.3), base) == pytest.approx(0.8)
    assert relative_score(Scores(0.8, 0.6), base) == pytest.approx(0.8)
    assert relative_score(Scores(0.9, 0.15), base) == pytest.approx(0.45)
    assert relative_score(Scores(-0.1, 0.3), base) == 0


def records(scores: list[float | None]) -> list[Record]:
    return [
        Record(step, 0.1, 1e-4, 1.0, 0.1, 1.0 / step, score=score) for step, score in enumerate(scores, 1)
    ]


def test_the_best_score_is_published_and_ends_patience() -> None:
    training = Training.model_validate(
        {"validation": {"everySteps": 2, "publish": "BestScore", "patience": 2}}
    )
    history = records([None, 0.5, None, 0.7, None, 0.6, None, 0.65])
    assert best_step(history, training) == 4
    assert is_out_of_patience(history, training)
    assert not is_out_of_patience(history[:6], training)
    assert best_step(history[:1], training) is None


def test_prompts_for_scores() -> None:
    concept = Concept(token="CUS", class_name="statue")
    assert without_token("a photo of a CUS statue in snow", concept) == "a photo of a statue in snow"
    assert without_token("a cus statue in FOCUS", concept) == "a statue in FOCUS"
    assert scored_prompts(["a", "b", "c"]) == ["a", "b", "c", "a", "b", "c"]
    assert len(scored_prompts(["a"])) == 4


def test_the_files_of_an_encoder() -> None:
    names = [
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "preprocessor_config.json",
        "README.md",
        "merges.txt",
    ]
    assert encoder_files(names) == [
        "config.json",
        "merges.txt",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    with pytest.raises(BadConfigurationError, match="no weights"):
        encoder_files(["config.json", "pytorch_model.bin"])
