"""The words that stand for a concept: in captions, prompts, class images, the command and published files."""

from __future__ import annotations

import pytest

from lora_api.job import Concept, JobSpec
from lora_api.rules import advice
from lora_trainer.demo.catalog import joined_opening
from lora_trainer.train.data.class_images import class_prompt
from lora_trainer.train.export.model_card import model_card
from lora_trainer.train.report.snippet import usage_snippet
from tests.conftest import make_spec
from tests.unit.train.test_model_card import SDXL, SPEC, manifest


def concept(class_name: str, kind: str = "Subject") -> Concept:
    return Concept.model_validate({"token": "CUS", "className": class_name, "type": kind})


@pytest.mark.parametrize(
    ("kind", "class_name", "opening", "of_class"),
    [
        ("Subject", "statue", "a photo of CUS statue", "a photo of statue"),
        ("Person", "woman", "a photo of CUS woman", "a photo of woman"),
        ("Style", "watercolor", "an image in CUS watercolor style", "an image in watercolor style"),
        ("Style", "comic style", "an image in CUS comic style", "an image in comic style"),
        ("Style", "Style", "an image in CUS Style", "an image"),
    ],
)
def test_prompts_of_each_type(kind: str, class_name: str, opening: str, of_class: str) -> None:
    subject = concept(class_name, kind)
    assert subject.opening == opening
    assert subject.class_prompt == of_class
    card = model_card(SPEC.model_copy(update={"concept": subject}), manifest(), images=8)
    assert f"instance_prompt: {opening}" in card
    assert f'pipeline("{opening}"' in usage_snippet(SDXL, subject, "adapter.safetensors")


@pytest.mark.parametrize(("own", "expected"), [("", "an image in ink style"), ("a woodcut", "a woodcut")])
def test_class_images_of_a_style_show_the_medium_and_validate_says_so(own: str, expected: str) -> None:
    spec = JobSpec.model_validate(
        make_spec(
            concept={"token": "CUS", "className": "ink", "type": "Style"},
            training={"priorPreservation": {"enabled": True, "classPrompt": own}},
        )
    )
    assert class_prompt(spec.training, spec.concept) == expected
    assert any("classPrompt" in message for message in advice(spec)) == (not own)


def test_a_prompt_for_several_adapters_names_each_concept_once() -> None:
    statue, dog, ink = concept("statue"), concept("dog"), concept("ink", "Style")
    assert joined_opening([]) == ""
    assert joined_opening([ink, ink]) == "an image in CUS ink style"
    assert joined_opening([ink, statue, dog, statue]) == "a photo of CUS statue and CUS dog in CUS ink style"
