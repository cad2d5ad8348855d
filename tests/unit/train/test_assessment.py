"""What the report concludes from records, previews, images and captions."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_api.job import Training, parse_spec
from lora_api.manifest import Manifest
from lora_api.profile import StoreModel
from lora_api.stages import StoreAccess, TrainConfig
from lora_api.status import PreviewStatus
from lora_trainer.train.records import Record
from lora_trainer.train.report import ReportData, Timing, TrainingImage, render
from lora_trainer.train.report.assessment import Level, assess
from lora_trainer.train.report.image_warnings import dataset_warnings, image_warnings
from tests.support.builders import ADAPTER, CAPTIONS_SHA, HASH, UID, wire_spec

BASE, SAME, OTHER = "base.png", "same.png", "other.png"
PROMPT, CLASS_PROMPT = "a photo of CUS statue", "a photo of a statue"


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(out, "png")
    return out.getvalue()


FILES = {BASE: png(100), SAME: png(101), OTHER: png(160)}


def report_data(**changed: Any) -> ReportData:
    """A training without problems: 100 steps of batch 4 on 8 images, whose previews changed."""
    spec = parse_spec(wire_spec(training={"maxSteps": 100, "batchSize": 4}))
    model = StoreModel(source="store", key="models/sdxl/")
    config = TrainConfig(
        namespace="studio",
        name="statue",
        uid=UID,
        spec=spec,
        store=StoreAccess(
            endpoint="s:1", secure=False, credentials_dir="/", input_bucket="in", output_bucket="out"
        ),
        work_dir="/work-dir",
        termination_log="/dev/null",
        progress_host="127.0.0.1",
        progress_port=0,
        cache_dir="/cache",
        attempt=1,
        base_model=model,
        captions_sha256=CAPTIONS_SHA,
        input_hash=HASH,
    )
    manifest = Manifest(
        namespace="studio",
        name="statue",
        uid=UID,
        attempt=1,
        input_hash=HASH,
        adapter=ADAPTER,
        base_model=model,
        files=[],
        previews=[PreviewStatus(step=100, prompt=PROMPT, key=OTHER)],
        steps=100,
        seed=0,
        first_loss=0.1,
        final_loss=0.1,
        versions={},
    )
    data = ReportData(
        config=config,
        manifest=manifest,
        records=[Record(step, 0.1, 1e-4, 1.0, 0.1) for step in range(1, 101)],
        training_images=[
            TrainingImage(f"images/{n}.png", f"a photo of CUS statue, view {n}", None) for n in range(8)
        ],
        base_previews={PROMPT: BASE, CLASS_PROMPT: BASE},
        captions=None,
        timing=Timing(1, 2, 3),
        device="CPU",
        fetch=FILES.get,
    )
    return replace(data, **changed)


def previews(**keys: str) -> Manifest:
    prompts = {"concept": PROMPT, "of_class": CLASS_PROMPT}
    return report_data().manifest.model_copy(
        update={
            "previews": [PreviewStatus(step=100, prompt=prompts[name], key=key) for name, key in keys.items()]
        }
    )


def images(*captions: str) -> list[TrainingImage]:
    return [TrainingImage(f"images/{n}.png", caption, None) for n, caption in enumerate(captions)]


def records(*losses: float | None, held_out: dict[int, float] | None = None) -> list[Record]:
    return [
        Record(step, loss, 1e-4, 1.0, 0.1, (held_out or {}).get(step))
        for step, loss in enumerate(losses, start=1)
    ]


@pytest.mark.parametrize(
    ("place", "training", "field"),
    [
        ("the UNet's prediction at timestep 7", {}, "training.learningRate"),
        ("the latent of the image with the caption 'an embedding'", {}, "training.learningRate"),
        (
            "the text embedding of 'a photo'",
            {"textEncoder": {"train": True}},
            "training.textEncoder.learningRate",
        ),
        (
            "the text embedding of 'a photo'",
            {"tokenEmbeddings": {"train": True}},
            "training.tokenEmbeddings.learningRate",
        ),
    ],
)
def test_a_loss_that_is_not_finite_is_reported_with_its_origin(
    place: str, training: dict[str, Any], field: str
) -> None:
    steps = records(*[0.1] * 50)
    steps[20] = replace(steps[20], loss=None, not_finite=place)
    data = report_data(records=steps)
    spec = data.config.spec.model_copy(update={"training": Training.model_validate(training)})
    data = replace(data, config=data.config.model_copy(update={"spec": spec}))
    finding = assess(data).findings[0]
    assert finding.field == field
    assert (
        f"1 of 50 steps had a loss that is infinite or not a number, and were skipped. In step 21, {place}"
        in (finding.text)
    )


def test_a_training_without_problems_is_good() -> None:
    assessment = assess(report_data())
    assert assessment.level == Level.GOOD
    assert "No problems found" in assessment.verdict


@pytest.mark.parametrize(
    ("changed", "title", "field"),
    [
        ({"records": records(*[0.1] * 5)}, "The training is too short", "training.maxSteps"),
        ({"records": records(*[0.1] * 90, *[0.4] * 10)}, "The training diverged", "training.learningRate"),
        (
            {"records": records(*[0.1] * 99, None)},
            "The loss was not finite in some steps",
            "training.learningRate",
        ),
        (
            {"records": records(*[0.1] * 100, held_out={25: 0.10, 50: 0.08, 75: 0.09, 100: 0.12})},
            "The training overfitted",
            "training.maxSteps",
        ),
        ({"manifest": previews(concept=SAME)}, "The adapter has almost no effect", "training.maxSteps"),
        (
            {"manifest": previews(concept=OTHER, of_class=OTHER)},
            "Prompts without the token changed too",
            "training.priorPreservation",
        ),
        ({"training_images": images("a CUS statue", "CUS statue two")}, "Too few images", "dataset.prefix"),
        (
            {"training_images": images("a photo of CUS statue", *[f"a statue {n}" for n in range(5)])},
            "Captions without the token",
            "annotation.existingCaptions",
        ),
    ],
)
def test_each_problem_is_named_with_the_field_to_change(
    changed: dict[str, Any], title: str, field: str
) -> None:
    data = report_data(**changed)
    assessment = assess(data)
    assert assessment.level == Level.PROBLEM
    assert (title, field) in [(finding.title, finding.field) for finding in assessment.findings]
    assert assessment.findings[0].level == Level.PROBLEM
    page = render(data)
    assert title in page
    assert f"<code>{field}</code>" in page


def test_a_held_out_loss_that_falls_is_learning() -> None:
    losses = records(*[0.1] * 100, held_out={25: 0.10, 50: 0.09, 100: 0.08})
    assert "It learned" in [finding.title for finding in assess(report_data(records=losses)).findings]
    assert "held-out images" in render(report_data(records=losses))


def test_previews_that_are_gone_lead_to_no_conclusion() -> None:
    assessment = assess(report_data(fetch=lambda key: None))
    assert assessment.level == Level.NOTE
    assert "effect" not in str(assessment.findings)


def test_an_image_is_shown_with_its_warnings() -> None:
    shown = [
        *report_data().training_images,
        TrainingImage("images/small.png", "no trigger at all", None, enlarged=2.0),
    ]
    warnings = image_warnings(report_data(training_images=shown))
    assert warnings["images/0.png"] == []
    assert any("enlarged 2.0 times" in text for text in warnings["images/small.png"])
    assert any("CUS" in text for text in warnings["images/small.png"])
    assert "enlarged 2.0 times" in render(report_data(training_images=shown))


def test_what_was_not_used_is_shown_too() -> None:
    data = report_data()
    report = {
        "images": [],
        "warnings": ["notes.txt: no image of this name; not used"],
        "skipped": [{"key": f"{data.config.spec.dataset.prefix}a.mov", "reason": "a video; ignored"}],
    }

    def fetch(key: str) -> bytes | None:
        return json.dumps(report).encode() if key == data.config.keys.dataset_report else None

    data = report_data(fetch=fetch)
    assert dataset_warnings(data) == [*report["warnings"], "a.mov: a video; ignored"]
    page = render(data)
    assert "notes.txt: no image of this name" in page
    assert "a.mov: a video" in page
    for broken in (b"[]", b'{"warnings": 7}', b"{", b'{"skipped": ["x"]}'):
        assert dataset_warnings(report_data(fetch=lambda _, content=broken: content)) == []
