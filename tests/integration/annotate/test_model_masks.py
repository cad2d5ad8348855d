"""Masks by the profile's segmentation model, in annotation jobs with a real store."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_api.reasons import Reason
from lora_api.stages import Outcome
from tests.support.segmenter import Marks, upload, write_segmenter

from .conftest import Job
from .test_stage import publish_adapter

pytest.importorskip("torch")

MASKS = {"annotation": {"mode": "Template", "masks": "Model"}}


@pytest.fixture
def install(make_job: Callable[..., Job], tmp_path: Path) -> Callable[[Job, Marks], None]:
    """Upload a segmentation model under the key that a job's profile names."""

    def install(job: Job, marks: Marks) -> None:
        job.segmentation = f"models/{job.namespace}/"
        upload(job.running.store.input, write_segmenter(tmp_path / marks, marks), job.segmentation)

    return install


def png(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def stored_mask(job: Job, index: int) -> np.ndarray:
    data = job.running.store.output.get(job.keys.image_named(f"{index:03}-mask.png"))
    return np.asarray(Image.open(BytesIO(data)))


def report_of(job: Job) -> dict[str, dict]:
    report = json.loads(job.running.store.output.get(job.keys.dataset_report))
    return {image["key"].removeprefix(job.prefix): image for image in report["images"]}


def test_images_get_the_models_masks_unless_they_have_their_own(make_job, install) -> None:
    job = make_job(2, **MASKS, dataset={"minImages": 1})
    job.spec["dataset"]["prefix"] = job.prefix
    bright = Image.new("RGB", (400, 300))
    bright.paste("white", (100, 75, 300, 225))
    job.upload("a.png", png(bright))
    job.upload("b.png", png(bright))
    job.upload("b-mask.png", png(Image.new("L", (400, 300), 255)))
    job.upload("c.png", png(Image.new("RGB", (400, 300), (9, 9, 9))))
    install(job, "bright")
    code, result = job.run()
    assert code == 0, result.message
    report = report_of(job)
    assert [report[name]["mask"] for name in ("a.png", "b.png", "c.png")] == ["Model", "Own", "None"]
    number = {row["file_name"]: index for index, row in enumerate(job.captions())}
    made = stored_mask(job, number[report["a.png"]["fileName"]]) > 127
    expected = np.zeros((300, 400), bool)
    expected[75:225, 100:300] = True
    assert (made & expected).sum() / (made | expected).sum() > 0.9
    assert (stored_mask(job, number[report["b.png"]["fileName"]]) == 255).all()
    # An image on which the model finds nothing is named, in the report and in the job's status.
    (warning,) = [text for text in report["c.png"]["warnings"] if "mask" in text]
    assert (
        warning
        == "no mask was made: the segmentation model found no 'statue' in it; put NAME-mask.png beside it"
    )
    assert result.dataset.warnings > 0
    assert "warnings" in result.message


def test_a_model_that_fails_on_every_image_fails_no_job(make_job, install) -> None:
    job = make_job(**MASKS, training={"resolution": 64})
    install(job, "not finite")
    code, result = job.run()
    assert code == 0, result.message
    assert not any(row.get("mask") for row in job.captions())
    for image in report_of(job).values():
        assert any("the segmentation model failed: it returned" in text for text in image["warnings"])
    assert "no mask was made: the segmentation model failed" in result.dataset.first_warning


def test_masks_of_another_model_are_another_dataset(make_job, install) -> None:
    job = make_job(**MASKS)
    install(job, "bright")
    _, first = job.run()
    assert first.outcome is Outcome.CAPTIONED
    publish_adapter(job, first)
    assert job.recreate().run()[1].outcome is Outcome.REUSED

    # by GrabCut, some of these images have masks under the same names
    by_colour = job.recreate()
    by_colour.spec = {**job.spec, "annotation": {"mode": "Template", "masks": "GrabCut"}}
    _, other = by_colour.run()
    assert other.captions.dataset_sha256 != first.captions.dataset_sha256

    other = job.recreate()
    install(other, "random")
    _, second = other.run()
    assert second.outcome is Outcome.CAPTIONED
    assert second.captions.dataset_sha256 != first.captions.dataset_sha256


def test_a_restarted_pod_continues_from_the_published_masks(make_job, install) -> None:
    job = make_job(**MASKS)
    install(job, "bright")
    _, first = job.run()
    install(job, "nothing")
    code, again = job.run()
    assert (code, again.input_hash) == (0, first.input_hash)


@pytest.mark.parametrize(
    ("model", "words"),
    [("", "add `segmentation` to the profile"), ("models/absent/", "models/absent/ has no weights")],
)
def test_a_missing_model_is_named(make_job, model: str, words: str) -> None:
    job = make_job(**MASKS)
    job.segmentation = model
    code, result = job.run()
    assert (code, result.reason) == (64, Reason.CONFIGURATION_INVALID)
    assert words in result.message


def test_a_cache_without_the_model_is_named(make_job, install, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(**MASKS)
    install(job, "bright")
    config = job.config()
    monkeypatch.setattr(job, "config", lambda: config.model_copy(update={"prefetched": True}))
    code, result = job.run()
    assert (code, result.reason) == (78, Reason.MODEL_UNAVAILABLE)
    assert f"the segmentation model store:{job.segmentation} is not in the model cache" in result.message
    monkeypatch.setattr(job, "config", lambda: config)
    assert job.run()[0] == 0
    again = job.recreate()
    filled = again.config().model_copy(update={"prefetched": True})
    monkeypatch.setattr(again, "config", lambda: filled)
    assert again.run()[0] == 0
