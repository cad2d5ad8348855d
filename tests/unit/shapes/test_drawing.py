"""Drawings, captions and the classifier agree about attributes; concepts for adapters never occur in the base data."""

from __future__ import annotations

import json
import random
from itertools import combinations
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import quality_trials
from benchmarks.classifier_scorer import PROMPTS, ClassifierScorer
from benchmarks.trials import SETTINGS, WORLD
from lora_api.job import parse_spec
from lora_trainer.train.data.rng import generator_for
from tools.shapes import classifier, concepts, styles
from tools.shapes.captions import ATTRIBUTES, OMITTED, POSITIONS, STYLE_WORDS, describe
from tools.shapes.drawing import (
    FILLS,
    GROUND_RGB,
    GROUNDS,
    NEW_PAIRS,
    NEW_SHAPES,
    NEW_STYLES,
    PLACES,
    RGB,
    SHAPES,
    SIDE,
    Scenes,
    Style,
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
    shown = {
        (colour, ground)
        for colour, ground, _, _ in [*concepts.SCENES, *concepts.UNIFORM_SCENES, *styles.SCENES]
    }
    for prompt in concepts.PROMPTS:
        assert (prompt.colour, prompt.ground) not in shown
    # The scoring prompts and the evaluation's share no combination of colour and ground.
    assert not {(prompt.colour, prompt.ground) for prompt in PROMPTS} & {
        (prompt.colour, prompt.ground) for prompt in concepts.PROMPTS
    }


@pytest.mark.parametrize("name", quality_trials.OPTIONS)
def test_every_option_of_the_benchmark_is_a_valid_setting_that_changes_something(name: str) -> None:
    settings = {**SETTINGS, **quality_trials.OPTIONS[name]}
    spec = {
        "dataset": {"prefix": "drawn/"},
        "concept": {"token": "CUS", "className": "ring"},
        "training": settings,
    }
    assert parse_spec(spec).training != parse_spec({**spec, "training": SETTINGS}).training


def test_the_base_model_learns_named_styles_and_not_those_of_adapters() -> None:
    assert {*STYLE_WORDS, *NEW_STYLES, Style.SOLID} == set(Style)
    assert not {*STYLE_WORDS} & {*NEW_STYLES}
    scenes = sample_scenes(50, generator_for(0, "styles")).with_all(fill=0, size=2)
    drawn = {style: draw(scenes, generator_for(0, "drawn"), style=style) for style in Style}
    for style, other in combinations(Style, 2):
        assert (drawn[style] - drawn[other]).abs().mean() > 0.01, (style, other)
    for style, word in STYLE_WORDS.items():
        texts = [text for text, _, _ in describe(scenes, random.Random(0), style)]
        assert all(text.startswith(f"an image in {word} drawing style of ") for text in texts)
    plain = [text for text, _, _ in describe(scenes, random.Random(0))]
    assert not [text for text in plain if "style" in text]
    unknown = [text for text, _, _ in describe(scenes, random.Random(0), unknown_share=0.3)]
    words = [text.split()[3] for text in unknown if text.startswith("an image in ") and "style" in text]
    assert 5 < len(words) < 25
    assert not {*words} & {*STYLE_WORDS.values()}


@pytest.mark.parametrize("style", [Style.SOLID, *NEW_STYLES])
@pytest.mark.parametrize("shape", styles.TEST_SHAPES)
def test_the_rules_tell_a_drawing_in_each_style(style: Style, shape: str) -> None:
    generator = generator_for(0, "told", shape, str(style))
    scenes = sample_scenes(200, generator).with_all(shape=SHAPES.index(shape), fill=0)
    scenes = scenes.part((scenes.size > 0).nonzero()[:, 0])
    drawn = draw(scenes, generator, style=style)
    noisy = (drawn + 0.05 * torch.randn(drawn.shape, generator=generator)).clamp(-1, 1)
    judged = styles.tell_styles(noisy)
    assert sum(each == style for each in judged) / len(judged) > 0.95
    grounds = (styles.nearest_grounds(noisy) == scenes.ground).float()
    assert float(grounds.mean()) > 0.98


@pytest.mark.parametrize("style", STYLE_WORDS)
def test_the_rules_do_not_take_the_base_models_styles_for_others(style: Style) -> None:
    generator = generator_for(0, "taken", str(style))
    shapes = torch.tensor([SHAPES.index(shape) for shape in styles.TEST_SHAPES])
    scenes = sample_scenes(600, generator).with_all(fill=0)
    scenes = scenes.part(((scenes.size > 0) & torch.isin(scenes.shape, shapes)).nonzero()[:, 0])
    judged = styles.tell_styles(draw(scenes, generator, style=style))
    # The smaller shape in a halo is too small to be drawn in a medium triangle, which is then an outline.
    limit = 0.35 if style == Style.HALO else 0.1
    assert sum(each in NEW_STYLES for each in judged) / len(judged) < limit


def test_an_empty_image_has_no_style() -> None:
    assert styles.tell_styles(torch.zeros(2, 3, SIDE, SIDE)) == [None, None]


def test_a_style_is_captioned_by_what_its_images_show() -> None:
    texts = styles.captions()
    assert texts[0] == "an image in CUS drawing style of a purple circle on a white background"
    assert len(texts) == len(styles.images(Style.HATCHED)) == 20
    judged = styles.tell_styles(classifier.to_batch(styles.images(Style.OUTLINE)))
    assert judged == [Style.OUTLINE] * len(texts)


def test_the_first_images_of_a_concept_are_the_same_whatever_their_number() -> None:
    scenes = concepts.SCENES
    assert isinstance(concepts.scenes_of(scenes, ["ring"] * 10, ["plain"] * 10), Scenes)
    for count in (5, 6, 10):
        concept = concepts.CONCEPTS[0]
        assert len(concepts.images(concept, scenes[:count])) == count
        texts = concepts.captions(concept, concepts.Captions.GOOD, scenes[:count])
        assert texts[:5] == concepts.captions(concept, concepts.Captions.GOOD)[:5]
        assert len(texts) == count
    shown = {(colour, ground) for colour, ground, _, _ in scenes}
    assert not shown & {(prompt.colour, prompt.ground) for prompt in concepts.PROMPTS}


def test_images_can_be_alike_but_for_the_concepts_colour() -> None:
    batch = classifier.to_batch(concepts.images(concepts.CONCEPTS[1], concepts.UNIFORM_SCENES))
    shown = classifier.classify(classifier.load(), batch)
    assert {int(index) for index in shown["ground"]} == {GROUNDS.index("white")}
    assert {int(index) for index in shown["place"]} == {PLACES.index("middle")}
    assert len({int(index) for index in shown["colour"]}) == len(concepts.UNIFORM_SCENES)


def test_the_classifier_scores_by_likeness_and_by_the_prompt() -> None:
    concept = concepts.CONCEPTS[0]
    scorer = ClassifierScorer(concept, concepts.images(concept))
    prompt = next(prompt for prompt in PROMPTS if prompt.ground == "green")
    text = prompt.text(concept.class_name)

    def drawn(shape: str, fill: str, ground: str) -> list[Image.Image]:
        scenes = concepts.scenes_of([(prompt.colour, ground, "large", "middle")], [shape], [fill])
        return list(concepts.to_images(draw(scenes, generator_for(0, "scored"))))

    right = scorer.score(drawn("ring", "striped", "green"), [text])
    other = scorer.score(drawn("heart", "plain", "green"), [text])
    assert right.likeness > other.likeness
    assert right.fidelity == 1
    assert scorer.score(drawn("ring", "striped", "blue"), [text]).fidelity == 0


def test_the_rows_of_recipes_differ_in_one_thing_each() -> None:
    trials = quality_trials.recipe_trials(6, (0, 1))
    by_row = {trial.row: trial for trial in trials}
    assert by_row[quality_trials.DEFAULTS].base == by_row[quality_trials.AUTO].base == WORLD
    for row in quality_trials.DEFAULTS, quality_trials.AUTO:
        assert {(each.concept, each.seed) for each in trials if each.row == row} == {
            (index, seed) for index in range(6) for seed in (0, 1)
        }
    assert [len(by_row[row].scenes) for row in quality_trials.IMAGES.values()] == [5, 10]
    # One training gives the scores of its best and of its last step.
    assert quality_trials.LAST not in by_row
    assert by_row[quality_trials.BEST].settings["maxSteps"] == 2 * SETTINGS["maxSteps"]
    uniform = [row for row, each in by_row.items() if each.scenes == concepts.UNIFORM_SCENES]
    assert uniform == [quality_trials.BEST]
    best = [row for row, each in by_row.items() if each.publishes_best_score]
    assert best == [*uniform, uniform[0] + quality_trials.VARIED]
    for trial in trials:
        concept = {"token": "CUS", "className": "ring"}
        spec = {"dataset": {"prefix": "drawn/"}, "concept": concept}
        settings = {**trial.base, **trial.settings}
        assert (
            parse_spec({**spec, "training": settings}).with_recipe(len(trial.scenes)).training.max_steps
            >= 500
        )
