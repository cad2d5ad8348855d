"""Every recipe trains from end to end, and the adapter and the report show it."""

from __future__ import annotations

import re

import pytest
from safetensors.torch import load

from lora_api.reasons import Reason
from tests.integration.train.conftest import JobMaker

PRIOR = {"numClassImages": 1, "guidanceScale": "1"}
"""Quick class images. A recipe does not set fields that are set."""


@pytest.mark.parametrize("recipe", ["None", "Auto", "Subject", "Person", "Style"])
def test_every_recipe_trains(make_job: JobMaker, recipe: str) -> None:
    prior = {"priorPreservation": {"enabled": True, **PRIOR}} if recipe == "Person" else {}
    job = make_job(recipe=recipe, maxSteps=2, preview={"numInferenceSteps": 1}, **prior)
    assert job.run().reason == Reason.TRAINED
    names = load(job.attempt_file("adapter.safetensors"))
    assert any(".ff." in name for name in names) == (recipe != "None")
    assert any(name.startswith("text_encoder") for name in names) == (recipe != "None")
    report = job.attempt_file("report.html").decode()
    settings = dict(re.findall(r"<span>(.*?)</span><b>(.*?)</b>", report.replace("<wbr>", "")))
    expected = {"Auto": "Subject"}.get(recipe, recipe)
    assert settings["training.recipe"] == expected
    assert settings["training.rank"] == "4"
    assert settings["training.maxSteps"] == "2"
    marked = {name for name, value in settings.items() if value.endswith("*")}
    if recipe == "None":
        assert not marked
        assert "asterisk" not in report
    else:
        every = {
            "training.alpha",
            "training.adapter.targets",
            "training.lrScheduler",
            "training.textEncoder.train",
            "training.textEncoder.learningRate",
        }
        of_style = {"training.noiseOffset", "training.captionDropout"} if recipe == "Style" else set()
        assert marked == every | of_style
        assert settings["training.textEncoder.learningRate"] == "0.0005*"
        assert f"the recipe {expected} set for 5 images" in report


def test_a_recipe_generates_class_images_by_the_number_of_images(make_job: JobMaker) -> None:
    job = make_job(recipe="Person", rank=2, preview={"numInferenceSteps": 1})
    assert job.config.spec.training.prior_preservation.num_class_images == 50
    assert job.config.recipe is not None
    assert {"priorPreservation.enabled", "priorPreservation.numClassImages"} <= set(job.config.recipe.fields)


def test_a_job_with_a_recipe_is_the_job_with_its_values(make_job: JobMaker) -> None:
    one = make_job(recipe="Style", maxSteps=2, preview={"numInferenceSteps": 1})
    wire = {name: value for name, value in one.config.spec.training.to_wire().items() if name != "recipe"}
    other = make_job(**wire)
    for job in (one, other):
        job.run()
    tensors, others = (load(job.attempt_file("adapter.safetensors")) for job in (one, other))
    assert tensors.keys() == others.keys()
    assert all(bool((tensors[name] == others[name]).all()) for name in tensors)


def test_a_recipe_fine_tunes_and_extracts_with_text_encoders_and_class_images(make_job: JobMaker) -> None:
    job = make_job(
        recipe="Auto",
        method="DreamBoothExtract",
        maxSteps=3,
        preview={"numInferenceSteps": 1},
        priorPreservation={"enabled": True, **PRIOR},
    )
    assert job.run().reason == Reason.TRAINED
    names = load(job.attempt_file("adapter.safetensors"))
    assert {name.partition(".")[0] for name in names} == {"unet", "text_encoder", "text_encoder_2"}
    assert any(".ff." in name for name in names)
    assert job.store.output.list("studio/.class-images/", 1000)
