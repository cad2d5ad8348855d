"""The values of recipes: which fields they set, what depends on the number of images, and that explicit fields win."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_api.job import JobSpec, parse_spec
from lora_api.manifest import input_hash
from lora_api.recipes import RECIPES, Amount
from lora_api.rules import advice
from lora_api.stages import TrainConfig
from lora_api.training import Recipe
from tests.conftest import make_spec
from tests.support import matrix

PAGE = Path(__file__).parents[3] / "docs/reference/recipes.md"
BEFORE = [
    ({}, "043914df288111cb0212f8c200580880ce7c9dab81b5a61245eca361d4514dad"),
    (
        {"rank": 8, "textEncoder": {"train": True}, "optimizer": "Prodigy"},
        "1cdbbd1b8c6c303ecfd7932a9ccb6eaf9321dc6ac81e948b2c9d65f312720cf9",
    ),
    (
        {"validation": {"everySteps": 5}, "variants": [{"name": "a", "rank": 2}]},
        "a2ae8059547180478c063111d84347c7781670f291c1a35984b58681b84d1530",
    ),
]
"""Settings, and their input hashes before there were recipes."""
OTHER_VALUES: dict[str, Any] = {
    "rank": 16,
    "alpha": 16,
    "adapter.targets": "Attention",
    "lrScheduler": "constant",
    "textEncoder.train": False,
    "textEncoder.learningRate": "0.000005",
    "maxSteps": 500,
    "priorPreservation.enabled": False,
    "priorPreservation.numClassImages": 100,
    "noiseOffset": "0",
    "captionDropout": "0",
}
"""The default of each field that a recipe sets: set explicitly, even the default wins."""


def job(concept: str = "Subject", **training: Any) -> JobSpec:
    return parse_spec(
        make_spec(
            dataset={"prefix": "a/"},
            concept={"token": "CUS", "className": "statue", "type": concept},
            training=training,
        )
    )


def hashed(spec: JobSpec) -> str:
    return input_hash(
        dataset="d",
        captions="c",
        concept=spec.concept,
        training=spec.training,
        formats=["kohya"],
        base_model="m",
        trainer_version="1",
    )


def effective(spec: JobSpec, images: int | None = None) -> dict[str, Any]:
    settings: dict[str, Any] = spec.effective(images)["training"]
    return settings


def at(settings: dict[str, Any], path: str) -> Any:
    for part in path.split("."):
        settings = settings[part]
    return settings


def nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return dict(value)


@pytest.mark.parametrize(("training", "expected"), BEFORE)
def test_without_a_recipe_a_job_keeps_its_input_hash(training: dict[str, Any], expected: str) -> None:
    for written in (training, {**training, "recipe": "None"}):
        spec = job(**written)
        assert hashed(spec) == f"sha256:{expected}"
        assert spec.with_recipe(7) is spec
        assert effective(spec, 7) == effective(spec) == {**effective(spec), "recipe": "None"}


@pytest.mark.parametrize("concept", ["Subject", "Person", "Style"])
def test_auto_is_the_recipe_of_the_concept(concept: str) -> None:
    auto, named = job(concept, recipe="Auto"), job(concept, recipe=concept)
    assert effective(auto, 8) == effective(named, 8) == {**effective(auto, 8), "recipe": concept}
    assert hashed(auto.with_recipe(8)) == hashed(named.with_recipe(8))
    for other in {"Subject", "Person", "Style"} - {concept}:
        assert effective(job(concept, recipe=other), 8)["recipe"] == other
        assert hashed(job(concept, recipe=other).with_recipe(8)) != hashed(auto.with_recipe(8))


def test_the_recipes_set_these_values() -> None:
    subject = job(recipe="Subject").completed(10)
    assert subject.chosen == {
        "rank": 16,
        "alpha": 16,
        "adapter.targets": "AttentionAndFeedForward",
        "lrScheduler": "cosine",
        "textEncoder.train": True,
        "textEncoder.learningRate": "0.00005",
        "maxSteps": 1000,
    }
    person = job(recipe="Person").completed(10).chosen
    assert person == {
        **subject.chosen,
        "rank": 32,
        "alpha": 32,
        "maxSteps": 1200,
        "priorPreservation.enabled": True,
        "priorPreservation.numClassImages": 100,
    }
    style = job(recipe="Style").completed(10).chosen
    assert style == {
        **subject.chosen,
        "rank": 32,
        "alpha": 32,
        "adapter.targets": "Full",
        "noiseOffset": "0.05",
        "captionDropout": "0.2",
    }
    extract = job(recipe="Subject", method="DreamBoothExtract").completed(10).chosen
    assert extract == {
        **{path: value for path, value in person.items() if path != "adapter.targets"},
        "learningRate": "5e-6",
        "maxSteps": 1000,
    }
    for kind, chosen in (("Subject", subject.chosen), ("Person", person), ("Style", style)):
        settings = effective(job(recipe=kind), 10)
        for path, value in chosen.items():
            assert at(settings, path) == value, path


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("Subject", {1: 500, 5: 500, 6: 600, 15: 1500, 16: 1500, 1000: 1500}),
        ("Person", {1: 800, 6: 800, 7: 840, 16: 1920, 17: 2000}),
        ("Style", {5: 1000, 11: 1100, 20: 2000, 21: 2000}),
    ],
)
def test_steps_grow_with_the_images_within_bounds(kind: str, steps: dict[int, int]) -> None:
    spec = job(recipe=kind)
    assert {images: effective(spec, images)["maxSteps"] for images in steps} == steps


@pytest.mark.parametrize("kind", ["Subject", "Person", "Style"])
def test_every_explicit_field_wins_even_with_its_default(kind: str) -> None:
    chosen = job(recipe=kind).completed(9).chosen
    assert set(chosen) <= set(OTHER_VALUES)
    for path, value in OTHER_VALUES.items():
        extra = {"enabled": True} if path.endswith("numClassImages") else {}
        extra |= {"train": True} if path == "textEncoder.learningRate" else {}
        written = nested(path, value)
        name = next(iter(written))
        if extra:
            written[name] |= extra
        spec = job(recipe=kind, **written)
        assert at(effective(spec, 9), path) == at(job(**written).to_wire()["training"], path), path
        assert path not in spec.completed(9).chosen


def test_values_that_belong_together_are_set_or_left_out_together() -> None:
    assert {"rank", "alpha"}.isdisjoint(job(recipe="Style", alpha=16).completed(9).chosen)
    assert job(recipe="Style", rank=8).completed(9).chosen["alpha"] == 8
    off = job(recipe="Person", textEncoder={"train": False}, priorPreservation={"enabled": False})
    assert not {path for path in off.completed(9).chosen if path.startswith(("textEncoder", "priorP"))}
    assert effective(job(recipe="Subject", learningRate="5e-4"), 9)["textEncoder"] == {
        "train": True,
        "learningRate": "0.00025",
    }


@pytest.mark.parametrize(
    ("training", "left_out"),
    [
        ({"method": "LoRA"}, {"priorPreservation.enabled", "priorPreservation.numClassImages"}),
        ({"compile": "Always"}, {"textEncoder.train", "textEncoder.learningRate"}),
        ({"lrScheduler": "cosine", "lrWarmupSteps": 499}, {"lrScheduler"}),
        ({"optimizer": "Prodigy"}, {"textEncoder.learningRate"}),
        ({"optimizer": "ProdigyScheduleFree"}, {"lrScheduler", "textEncoder.learningRate"}),
        (
            {
                "validation": {"everySteps": 5},
                "variants": [{"name": "a", "seed": 1}],
            },
            {"priorPreservation.enabled", "priorPreservation.numClassImages"},
        ),
        (
            {"lrScheduler": "cosine_with_restarts", "lrSchedulerCycles": 600, "maxSteps": 1200},
            {"lrScheduler", "maxSteps"},
        ),
    ],
)
def test_values_that_the_rules_refuse_beside_explicit_fields_are_left_out(
    training: dict[str, Any], left_out: set[str]
) -> None:
    every = set(job(recipe="Person").completed(5).chosen)
    assert set(job(recipe="Person", **training).completed(5).chosen) == every - left_out


@pytest.mark.parametrize("kind", ["Subject", "Person", "Style"])
def test_with_extraction_a_recipe_has_a_low_rate_and_class_images(kind: str) -> None:
    training = {"recipe": kind, "method": "DreamBoothExtract"}
    plain = job(recipe=kind).completed(9).chosen
    spec = job(**training)
    chosen = spec.completed(9).chosen
    prior = {path for path in chosen if path.startswith("priorPreservation")}
    assert set(plain) - set(chosen) == {"adapter.targets"}
    assert set(chosen) - set(plain) <= {"learningRate", *prior}
    assert (chosen["rank"], chosen["learningRate"]) == (32, "5e-6")
    assert prior == (
        set() if kind == "Style" else {"priorPreservation.enabled", "priorPreservation.numClassImages"}
    )
    # The rate of the text encoders' adapters does not depend on that of the UNet's own weights.
    for own in ({}, {"learningRate": "2e-6"}, {"learningRate": "5e-6"}):
        assert job(**training, **own).completed(9).chosen["textEncoder.learningRate"] == "0.00005"
    assert "learningRate" not in job(**training, learningRate="2e-6").completed(9).chosen
    assert "learningRate" not in job(**training, optimizer="Prodigy").completed(9).chosen
    assert not advice(spec.with_recipe(9))


def test_no_number_of_class_images_is_chosen_where_there_are_none() -> None:
    for images in (9, 10):
        chosen = job(recipe="Person", priorPreservation={"enabled": False}).completed(images).chosen
        assert not [path for path in chosen if path.startswith("priorPreservation")]


@pytest.mark.parametrize("row", matrix.some_rows(matrix.SIMULATED_GPU, 25))
def test_the_result_is_valid_beside_any_explicit_fields(row: matrix.Row) -> None:
    parts = matrix.settings(row, {})
    spec = parse_spec(make_spec(**{**parts, "training": {**parts["training"], "recipe": "Person"}}))
    completed = spec.with_recipe(7)
    again = parse_spec(completed.to_wire())
    assert again == completed
    for path in spec.completed(7).chosen:
        assert at(completed.to_wire()["training"], path) is not None


def test_until_the_images_are_known_their_fields_are_missing() -> None:
    settings = effective(job("Person", recipe="Auto"))
    assert settings["recipe"] == "Person"
    assert (settings["rank"], settings["priorPreservation"]["enabled"]) == (32, True)
    assert "maxSteps" not in settings
    assert "numClassImages" not in settings["priorPreservation"]
    assert effective(job("Person", recipe="Auto", maxSteps=7))["maxSteps"] == 7


def test_where_the_recipe_trains_the_text_encoders_no_step_is_recorded() -> None:
    assert effective(job(recipe="Auto"), 9)["compile"] == "Never"
    assert effective(job(recipe="Auto", textEncoder={"train": False}), 9)["compile"] == "Auto"


def test_explicit_fields_stay_explicit_when_a_spec_is_written_and_read_again() -> None:
    spec = job("Person", recipe="Auto", rank=16, adapter={"targets": "Attention"}, preview={"everySteps": 50})
    assert spec.to_wire()["training"] == {
        "recipe": "Auto",
        "rank": 16,
        "adapter": {"targets": "Attention"},
        "preview": {"everySteps": 50},
    }
    again = JobSpec.model_validate_json(spec.model_dump_json(by_alias=True))
    assert again.with_recipe(9) == spec.with_recipe(9)
    assert JobSpec.model_validate(spec.model_dump()).with_recipe(9) == spec.with_recipe(9)


def test_the_values_are_in_the_input_hash_and_the_name_is_not() -> None:
    spec = job(recipe="Auto")
    assert hashed(spec.with_recipe(8)) != hashed(spec.with_recipe(9))
    written = {name: value for name, value in effective(spec, 8).items() if name not in ("recipe", "compile")}
    assert hashed(job(**written)) == hashed(spec.with_recipe(8))
    with pytest.raises(ValueError, match="the recipe has not been applied"):
        hashed(spec)


def test_a_variant_starts_from_the_values_of_the_recipe() -> None:
    variants = [{"name": "small", "rank": 4}, {"name": "as-it-is"}]
    spec = job(recipe="Style", validation={"everySteps": 100}, variants=variants).with_recipe(12)
    small, same = spec.training.trainings().values()
    assert (small.rank, small.alpha, small.max_steps) == (4, 32, 1200)
    assert (same.rank, str(same.noise_offset)) == (32, "0.05")


def test_a_very_small_rate_can_be_halved() -> None:
    for rate in ("1e-99", "0.1234567890123457", "3e-99"):
        spec = job(recipe="Auto", learningRate=rate).with_recipe(9)
        assert parse_spec(spec.to_wire()) == spec


def test_the_page_has_every_value() -> None:
    rows = {
        cells[1].strip("` "): [cell.strip() for cell in cells[2:5]]
        for line in PAGE.read_text().splitlines()
        if line.startswith("|") and len(cells := line.split("|")) == 7
    }
    assert {path for kind in RECIPES for path in job(recipe=kind).completed(9).chosen} <= set(rows)
    for column, values in enumerate(RECIPES.values()):
        assert rows["maxSteps"][column] == str(values.steps)
        assert rows["rank"][column] == str(values.rank)
        amount = values.class_images
        assert rows["priorPreservation.numClassImages"][column] == (str(amount) if amount else "-")
        assert rows["priorPreservation.enabled"][column] == ("true" if amount else "-")
        offset = str(values.noise_offset) if values.noise_offset else "-"
        assert rows["noiseOffset"][column] == offset
    assert list(RECIPES) == [Recipe.SUBJECT, Recipe.PERSON, Recipe.STYLE]
    assert Amount(10, 50, 200).of(7) == 70


def test_the_training_stage_takes_no_spec_whose_recipe_is_not_applied() -> None:
    with pytest.raises(ValueError, match=r"spec\.training\.recipe must be applied"):
        TrainConfig.model_validate(
            {
                "namespace": "n",
                "name": "j",
                "uid": "u",
                "spec": job(recipe="Auto").to_wire(),
                "baseModel": {"source": "store", "key": "models/x/"},
                "store": {
                    "endpoint": "s:1",
                    "secure": False,
                    "credentialsDir": "/x",
                    "inputBucket": "i",
                    "outputBucket": "o",
                },
                "workDir": "/w",
                "terminationLog": "/t",
                "progressHost": "h",
                "progressPort": 1,
                "captionsSha256": "c",
                "inputHash": "h",
                "cacheDir": "/c",
            }
        )
