"""Uploads of users through the whole stage: folders, captions, duplicates, types of concept."""

from __future__ import annotations

import json
from io import BytesIO

import pytest
from PIL import Image

from lora_api.job import ConceptType
from lora_api.reasons import Reason
from lora_trainer.annotate.concept_fields import FIELDS as FIELDS_BY_TYPE

from .conftest import Job, message


def test_a_prefix_is_a_folder(make_job, small_photographs):
    job: Job = make_job(annotation={"mode": "Template"})
    job.running.store.input.put(job.prefix.rstrip("/") + "2-of-another/IMG_9.jpg", small_photographs[0])
    job.spec["dataset"] = {"prefix": job.prefix.rstrip("/")}
    code, result = job.run()
    assert code == 0
    assert result.dataset.images == 5
    report = json.loads(job.running.store.output.get(job.keys.dataset_report))
    assert all(image["key"].startswith(job.prefix) for image in report["images"])


@pytest.mark.parametrize("again", ["same bytes", "another encoding", "another size"])
def test_copies_do_not_satisfy_min_images(make_job, small_photographs, again):
    job: Job = make_job(3, annotation={"mode": "Template"})
    with Image.open(BytesIO(small_photographs[0])) as image:
        for index in range(2):
            out = BytesIO()
            if again == "another size":
                image.resize((300 + index, 300)).save(out, "PNG")
            else:
                image.save(out, "JPEG", quality=60 + 10 * index)
            job.upload(f"copy{index}.jpg", small_photographs[0] if again == "same bytes" else out.getvalue())
    code, result = job.run()
    assert (code, result.reason) == (65, Reason.DATASET_INVALID)
    assert "3 different images" in result.message


def test_captions_that_are_not_used_reach_the_result(make_job):
    job: Job = make_job(annotation={"mode": "Template"}, training={"resolution": 256})
    job.upload("notes.txt", b"my notes")
    job.upload(
        "metadata.csv",
        "file_name,text\nimg_0.JPG,a photo of CUS statue at dusk\ngone.jpg,x\n".encode("utf-16"),
    )
    job.upload("reg/1.png", b"x")
    code, result = job.run()
    assert code == 0
    assert job.captions()[0]["text"] == "a photo of CUS statue at dusk"
    assert result.dataset.warnings == 3
    assert "regularisation" in result.dataset.first_warning
    assert "3 warnings, the first: " in result.message
    report = json.loads(job.running.store.output.get(job.keys.dataset_report))
    assert any("gone.jpg" in warning for warning in report["warnings"])
    assert any("notes.txt" in warning for warning in report["warnings"])


def test_captions_that_break_the_rules_are_used_with_a_warning(make_job):
    job: Job = make_job(annotation={"mode": "Existing"})
    words = ["on a lawn", "at dusk", "in the rain", "I'm sorry, I can't describe people", "im cafÃ©"]
    for index, text in enumerate(words):
        job.upload(f"IMG_{index}.txt", f"a photo of CUS statue, {text}".encode())
    code, _ = job.run()
    assert code == 0
    assert [row["text"] for row in job.captions()] == [f"a photo of CUS statue, {text}" for text in words]
    report = json.loads(job.running.store.output.get(job.keys.dataset_report))
    warned = ["; ".join(image["warnings"]) for image in report["images"]]
    assert [("its caption" in text) for text in warned] == [False, False, False, True, True]
    assert "a model declined" in warned[3]
    assert "wrong encoding" in warned[4]


def test_parts_that_have_no_effect_are_warnings_at_their_image(make_job, small_photographs):
    training = {"resolution": 256, "crop": "Buckets", "masking": {"outsideWeight": "0.5"}}
    job: Job = make_job(annotation={"mode": "Template"}, training=training)
    with Image.open(BytesIO(small_photographs[0])) as image:
        out = BytesIO()
        image.rotate(90).resize((2048, 256)).save(out, "PNG")
    job.upload("long.png", out.getvalue())
    job.upload("logs/IMG_7.jpg", small_photographs[0])
    job.upload("IMG_0.txt", b"out of focus")  # CUS is part of a word here and not a word
    code, result = job.run()
    assert code == 0
    report = json.loads(job.running.store.output.get(job.keys.dataset_report))
    assert report["warnings"] == [
        "logs/: 1 images are not used, because programs keep small copies in folders of this name; rename it to use them",
        "training.masking.outsideWeight has no effect: no image has a mask NAME-mask.png",
    ]
    by_name = {image["key"].removeprefix(job.prefix): image["warnings"] for image in report["images"]}
    long = "only 50% of it is trained on, because it is so long: crop it to a shorter image"
    assert long in by_name["long.png"]
    assert "its caption does not name CUS" in by_name["IMG_0.jpg"]
    assert result.dataset.warnings == len(report["warnings"]) + sum(map(len, by_name.values()))
    assert result.dataset.first_warning == report["warnings"][0]


def test_held_out_images_leave_some_to_train_on(make_job):
    validation = {"everySteps": 1, "heldOutImages": 5}
    job: Job = make_job(annotation={"mode": "Template"}, training={"validation": validation})
    code, result = job.run()
    assert (code, result.reason) == (65, Reason.DATASET_INVALID)
    assert "heldOutImages=5" in result.message


def test_an_unreadable_caption_is_named_in_mode_existing(make_job):
    job: Job = make_job(annotation={"mode": "Existing"})
    for index in range(5):
        job.upload(f"IMG_{index}.txt", b"\x00\x01\x02" if index == 3 else b"a photo of CUS statue")
    code, result = job.run()
    assert (code, result.reason) == (65, Reason.DATASET_INVALID)
    assert "IMG_3.txt cannot be read: it is binary" in result.message


OPENINGS = {
    "Subject": ("statue", "a photo of CUS statue"),
    "Person": ("woman", "a photo of CUS woman"),
    "Style": ("watercolor painting", "an image in CUS watercolor painting style"),
}


@pytest.mark.parametrize("kind", OPENINGS)
def test_each_type_of_concept_has_its_own_fields_prompt_and_opening(make_job, messages_api, kind):
    names = list(FIELDS_BY_TYPE[ConceptType(kind)])
    fields = {name: f"words of {name}" for name in names[:3]}
    messages_api.good = lambda: message(json.dumps(fields))
    class_name, opening = OPENINGS[kind]
    job: Job = make_job(llm=messages_api)
    job.spec["concept"] = {"token": "CUS", "className": class_name, "type": kind}
    job.spec["annotation"] = {"instructions": "call the place 'meadow'"}
    code, result = job.run()
    assert code == 0, result.message
    assert job.captions()[0]["text"] == ", ".join([opening, *fields.values()])
    asked = messages_api.requests[0]
    assert list(asked["output_config"]["format"]["schema"]["properties"]) == names
    text = asked["messages"][0]["content"][1]["text"]
    assert "meadow" in text
    assert "within the fields" in text
    style = kind == "Style"
    assert ("Never describe the style" in asked["system"]) == style
    assert ("colour" in asked["system"]) != style
    assert (class_name in text) != style


@pytest.mark.parametrize("name", ["雕像", "статуя", "gâteau"])
def test_class_names_of_any_script(make_job, messages_api, name):
    job: Job = make_job(llm=messages_api)
    job.spec["concept"] = {"token": "CUS", "className": name}
    code, result = job.run()
    assert code == 0, result.message
    assert job.captions()[0]["text"].startswith(f"a photo of CUS {name}, close-up")


def test_an_overrun_of_the_limit_is_reported(make_job, messages_api):
    usage = {"input_tokens": 260_000, "output_tokens": 80}
    body = json.dumps(dict.fromkeys(FIELDS_BY_TYPE[ConceptType.SUBJECT], "") | {"setting": "on a lawn"})
    messages_api.good = lambda: message(body, usage=usage)
    job: Job = make_job(1, llm=messages_api, annotation={"limits": {"maxCostUSD": "0.01"}})
    job.spec["dataset"] = {"prefix": job.prefix, "minImages": 1}
    code, result = job.run()
    assert code == 0
    assert "more than the limit" in result.message
