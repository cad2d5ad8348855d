"""Drawings, captions and the classifier agree about attributes; concepts for adapters never occur in the base data."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import bench_quality
from benchmarks.trials import SETTINGS
from lora_api.job import parse_spec
from lora_trainer.train.data.rng import generator_for
from tools.shapes import classifier, concepts
from tools.shapes.captions import ATTRIBUTES, OMITTED, POSITIONS, describe
from tools.shapes.drawing import (
    FILLS,
    GROUND_RGB,
    NEW_PAIRS,
    NEW_SHAPES,
    RGB,
    SHAPES,
    SIDE,
    draw,
    sample_scenes,
)


def test_drawing_is_deterministic_for_a_seed() -> None:
    one, other = (
        draw(sample_scenes(8, generator), generator)
        for generator in (generator_for(3, "a"), generator_for(3, "a"))
    )
    assert torch.equal(one, other)
    assert one.shape == (8, 3, SIDE, SIDE)
    assert one.min() >= -1
    assert one.max() <= 1


def test_base_data_never_contains_the_concepts_of_adapters() -> None:
    scenes = sample_scenes(20_000, generator_for(0, "never"))
    seen = {(SHAPES[shape], FILLS[fill]) for shape, fill in zip(scenes.shape, scenes.fill, strict=True)}
    assert not seen & set(NEW_PAIRS)
    assert not {shape for shape, _ in seen} & set(NEW_SHAPES)
    assert len(seen) == 8 * 5 - len(NEW_PAIRS)
    assert (scenes.colour != scenes.ground).all()
    everything = sample_scenes(20_000, generator_for(0, "never"), new_shapes=True, new_pairs=True)
    assert set(zip(everything.shape.tolist(), everything.fill.tolist(), strict=True)) == {
        (shape, fill) for shape in range(10) for fill in range(5)
    }


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_a_plain_thing_has_its_colour_in_its_place_and_the_ground_around(shape: int) -> None:
    generator = generator_for(1, "plain", shape)
    scenes = sample_scenes(64, generator).with_all(shape=shape, fill=0, size=2)
    images = (draw(scenes, generator) + 1) / 2
    corner = images[:, :, -1, -1]
    assert (corner - GROUND_RGB[scenes.ground]).abs().max() < 0.2
    inked = ((images - RGB[scenes.colour][:, :, None, None]).abs().amax(dim=1) < 0.05).flatten(1).sum(dim=1)
    assert (inked > SIDE * SIDE * 0.05).all()
    assert (inked < SIDE * SIDE * 0.5).all()


def test_captions_name_only_attributes_of_their_scene() -> None:
    scenes = sample_scenes(500, generator_for(0, "captions"))
    for index, (text, stated, unknown) in enumerate(describe(scenes, random.Random(0))):
        words = text.replace(",", "").split()
        for name, value in stated.items():
            assert value in (OMITTED, int(getattr(scenes, name)[index]))
            if value != OMITTED and name != "place":
                assert ATTRIBUTES[name][value] in words
        if stated["place"] != OMITTED:
            assert any(
                phrase in text.replace(",", "") for phrase in POSITIONS[ATTRIBUTES["place"][stated["place"]]]
            )
        if unknown:
            assert unknown in words


def test_the_classifier_is_right_about_drawings_that_it_was_not_trained_on() -> None:
    generator = generator_for(1, "held out")
    scenes = sample_scenes(1000, generator, new_shapes=True, new_pairs=True)
    predicted = classifier.classify(classifier.load(), draw(scenes, generator))
    for name, indices in predicted.items():
        right = (indices == getattr(scenes, name)).float().mean()
        assert right > 0.98, f"{name}: {right:.3f}"


def test_the_classifier_predicts_nothing_for_noise_and_pieces() -> None:
    generator = generator_for(2, "nothing")
    pieces = classifier.shuffled(draw(sample_scenes(200, generator), generator), generator)
    nothing = len(SHAPES)
    assert (classifier.classify(classifier.load(), pieces)["shape"] == nothing).float().mean() > 0.9


@pytest.mark.parametrize("concept", concepts.CONCEPTS, ids=lambda concept: concept.name)
def test_the_images_of_a_concept_show_it(concept: concepts.Concept) -> None:
    assert (concept.shape, concept.fill) in NEW_PAIRS
    predicted = classifier.classify(classifier.load(), classifier.to_batch(concepts.images(concept)))
    assert [SHAPES[index] for index in predicted["shape"]] == [concept.shape] * len(concepts.TRAINING_SCENES)
    assert [FILLS[index] for index in predicted["fill"]] == [concept.fill] * len(concepts.TRAINING_SCENES)


def test_the_quickstarts_images_show_the_first_concept() -> None:
    folder = Path(__file__).parents[3] / "examples" / "quickstart" / "images"
    kept = classifier.to_batch([Image.open(path) for path in sorted(folder.glob("*.jpg"))])
    drawn = classifier.to_batch(concepts.images(concepts.CONCEPTS[0], scale=8))
    assert (kept - drawn).abs().mean() < 0.01
    captions = [json.loads(line)["text"] for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert captions == concepts.captions(concepts.CONCEPTS[0], concepts.Captions.GOOD)


def test_captions_good_and_bad() -> None:
    ring = concepts.CONCEPTS[0]
    kinds = {kind: concepts.captions(ring, kind) for kind in concepts.Captions}
    assert kinds[concepts.Captions.TEMPLATE][0] == "a photo of CUS ring"
    assert kinds[concepts.Captions.GOOD][1] == "a photo of a red CUS ring on a green background on the left"
    assert (
        kinds[concepts.Captions.WRONG_CLASS][1]
        == "a photo of a red CUS heart on a green background on the left"
    )
    assert kinds[concepts.Captions.NO_TOKEN][1] == "a photo of a red ring on a green background on the left"
    assert kinds[concepts.Captions.TRUNCATED][1] == "a photo of a red"
    assert kinds[concepts.Captions.SHUFFLED][0] == kinds[concepts.Captions.GOOD][1]


def test_no_prompt_names_what_the_training_images_show() -> None:
    shown = {(colour, ground) for colour, ground, _, _ in concepts.TRAINING_SCENES}
    for prompt in concepts.PROMPTS:
        assert (prompt.colour, prompt.ground) not in shown


@pytest.mark.parametrize("name", bench_quality.OPTIONS)
def test_every_option_of_the_benchmark_is_a_valid_setting_that_changes_something(name: str) -> None:
    settings = {**SETTINGS, **bench_quality.OPTIONS[name]}
    spec = {
        "dataset": {"prefix": "drawn/"},
        "concept": {"token": "CUS", "className": "ring"},
        "training": settings,
    }
    assert parse_spec(spec).training != parse_spec({**spec, "training": SETTINGS}).training
