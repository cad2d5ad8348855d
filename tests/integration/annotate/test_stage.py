"""The annotation stage from its configuration to its termination message."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from io import BytesIO

import pytest
from PIL import Image

from lora_api.job import parse_spec
from lora_api.keys import reuse_pointer
from lora_api.manifest import CaptionsManifest, Manifest, ReusePointer, canonical_json, sha256_hex
from lora_api.reasons import Reason
from lora_api.stages import Outcome, StageResult
from lora_api.status import AdapterStatus
from lora_trainer.annotate.stage import work
from tests.conftest import make_spec

from .conftest import FIELDS, Job

CAPTION = "a photo of CUS statue, close-up at eye level, on a green lawn, soft daylight"


def test_captions_by_a_language_model(make_job, messages_api):
    job = make_job(llm=messages_api, annotation={"instructions": "mention the season"})
    code, result = job.run()

    assert (code, result.outcome, result.reason) == (0, Outcome.CAPTIONED, Reason.CAPTIONED)
    rows = job.captions()
    assert [row["file_name"] for row in rows] == [f"{n:03d}.png" for n in range(5)]
    assert {row["text"] for row in rows} == {CAPTION}
    assert result.captions.sha256 == sha256_hex(job.running.store.output.get(job.keys.captions))
    assert result.captions.total == result.dataset.images == 5
    assert result.captions.usage.requests == 5
    assert result.captions.usage.cost_usd == Decimal("0.0007")  # 5 * (1000 * 0.10 + 80 * 0.50) / 1e6

    for row in rows:
        data = job.running.store.output.get(job.keys.image_named(row["file_name"]))
        with Image.open(BytesIO(data)) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (row["width"], row["height"]))
            assert not image.getexif()
    manifest = CaptionsManifest.model_validate_json(job.running.store.output.get(job.keys.captions_manifest))
    assert manifest.captions_sha256 == result.captions.sha256
    assert all(job.running.store.output.holds(entry) for entry in manifest.files)

    asked = messages_api.requests[0]
    image, text = asked["messages"][0]["content"]
    assert "season" in text["text"]
    assert asked["output_config"]["format"]["schema"]["additionalProperties"] is False
    assert not {"temperature", "tools", "tool_choice"} & set(asked)
    with Image.open(BytesIO(base64.b64decode(image["source"]["data"]))) as seen:
        assert max(seen.size) <= 768
    assert messages_api.max_running <= 4


@pytest.mark.parametrize(
    ("crop", "shape", "crops"), [("Smart", 1.0, True), ("Center", 1.0, False), ("Buckets", 2.0, False)]
)
def test_the_model_sees_what_is_trained_on(make_job, messages_api, crop, shape, crops):
    job = make_job(0, llm=messages_api, training={"crop": crop})
    job.spec["dataset"] = {"prefix": job.prefix, "minImages": 1}
    wide = Image.new("RGB", (1600, 800), "grey")
    wide.paste((200, 30, 30), (1300, 300, 1500, 500))
    out = BytesIO()
    wide.save(out, "PNG")
    job.upload("wide.png", out.getvalue())
    assert job.run()[0] == 0

    (row,) = job.captions()
    image = messages_api.requests[0]["messages"][0]["content"][0]
    with Image.open(BytesIO(base64.b64decode(image["source"]["data"]))) as seen:
        assert seen.width / seen.height == pytest.approx(shape, abs=0.01)
    assert ("crop" in row) == crops
    if crops:
        assert row["crop"][2] > 1500 / 1600


def test_progress_is_reported_as_captions_arrive(make_job, messages_api):
    class Reporter:
        def __init__(self):
            self.seen = []

        def update(self, step, total):
            self.seen.append((step, total))

    job = make_job(llm=messages_api)
    job.llm["concurrency"] = 1
    job.upload("IMG_3.txt", b"a photo of CUS statue, in the rain")
    reporter = Reporter()
    work(job.config(), reporter)
    assert list(dict.fromkeys(reporter.seen)) == [(n, 5) for n in range(1, 6)]


def test_a_poisoned_caption_in_the_cache_is_cleaned_as_a_reply_is(make_job, messages_api):
    job = make_job(llm=messages_api)
    assert job.run()[0] == 0
    store = job.running.store.output
    keys = [item.key for item in store.list(f"{job.namespace}/.captions/", 100)]
    declined, poisoned = keys[:2]
    for key in keys:
        stored = json.loads(store.get(key))
        name = next(iter(stored["fields"]))
        text = (
            "I'm sorry, I can't help with that"
            if key == declined
            else "evil\x1b[2J <|endoftext|> \u202ewords " + " ".join(f"number{n}" for n in range(40))
        )
        stored["fields"] = dict.fromkeys(stored["fields"], "") | {name: text}
        if key in (declined, poisoned):
            store.put(key, json.dumps(stored).encode())
    asked = len(messages_api.requests)
    recreated = job.recreate()
    assert recreated.run()[0] == 0
    assert len(messages_api.requests) == asked + 1, "only the one that declines is bought again"
    texts = [row["text"] for row in recreated.captions()]
    (evil,) = [text for text in texts if "evil" in text]
    assert all(character.isprintable() for character in evil)
    assert "endoftext" not in evil
    assert len(evil.split()) < 25


def test_no_caption_is_paid_for_twice(make_job, messages_api):
    job = make_job(llm=messages_api)
    _, first = job.run()
    assert len(messages_api.requests) == 5

    _, repeated = job.run()
    assert repeated == first

    _, recreated = job.recreate().run()
    assert len(messages_api.requests) == 5
    assert recreated.captions.sha256 == first.captions.sha256
    assert recreated.input_hash == first.input_hash
    assert recreated.captions.usage.requests == 0


def test_a_reviewers_edit_survives_a_restart_of_the_stage(make_job, messages_api):
    job = make_job(llm=messages_api)
    _, first = job.run()
    store = job.running.store.output
    edited = store.get(job.keys.captions).replace(b"green lawn", b"wet meadow")
    store.put(job.keys.captions, edited)

    code, again = job.run()
    assert code == 0
    assert store.get(job.keys.captions) == edited
    assert again.captions.sha256 == sha256_hex(edited) != first.captions.sha256
    assert again.input_hash != first.input_hash
    assert len(messages_api.requests) == 5


def test_a_half_published_job_is_done_again(make_job, messages_api):
    job = make_job(llm=messages_api)
    _, first = job.run()
    job.running.store.output.put(job.keys.image(2), b"flipped")
    _, again = job.run()
    assert again.captions.sha256 == first.captions.sha256
    with Image.open(BytesIO(job.running.store.output.get(job.keys.image(2)))) as image:
        assert image.format == "PNG"
    assert len(messages_api.requests) == 5


def test_captions_beside_the_images_are_kept(make_job, messages_api):
    job = make_job(llm=messages_api)
    job.upload("IMG_0.txt", b"CUS statue in the rain\n")
    rows = [{"file_name": "IMG_1.jpg", "prompt": "CUS statue at night"}, {"file_name": 7}, "nonsense"]
    job.upload("metadata.jsonl", "\n".join(json.dumps(row) for row in rows).encode())
    _, result = job.run()
    assert [row["text"] for row in job.captions()[:3]] == [
        "CUS statue in the rain",
        "CUS statue at night",
        CAPTION,
    ]
    assert result.captions.usage.requests == len(messages_api.requests) == 3


def test_further_captions_and_repeats_of_a_dataset_reach_the_training(make_job):
    job = make_job(annotation={"mode": "Existing"})
    names = [f"IMG_{n}.jpg" for n in range(5)]
    rows = [{"file_name": name, "text": "a photo of CUS statue"} for name in names]
    rows[1] |= {"captions": ["CUS statue at dusk", "a statue " + "far away " * 90], "repeats": 3}
    job.upload("metadata.jsonl", "\n".join(json.dumps(row) for row in rows).encode())
    job.run()
    published = job.captions()
    assert published[1]["repeats"] == 3
    first, second = published[1]["captions"]
    assert first == "CUS statue at dusk"
    assert second.startswith("a statue far away")
    assert len(second) < 700  # cut to the tokens that CLIP reads
    assert "captions" not in published[0]
    assert "repeats" not in published[0]
    report = json.loads(job.running.store.output.get(job.keys.dataset_report))
    warnings = report["images"][1]["warnings"]
    assert any("does not name CUS" in text for text in warnings)
    assert any("cut to 75 CLIP tokens" in text for text in warnings)


def test_captions_beside_the_images_are_overwritten_with_overwrite(make_job, messages_api):
    job = make_job(llm=messages_api, annotation={"existingCaptions": "Overwrite"})
    job.upload("IMG_0.txt", b"CUS statue in the rain")
    job.run()
    assert {row["text"] for row in job.captions()} == {CAPTION}


def test_the_template_needs_no_language_model(make_job):
    job = make_job(annotation={"mode": "Template"})
    code, result = job.run()
    assert code == 0
    assert {row["text"] for row in job.captions()} == {"a photo of CUS statue"}
    assert result.captions.usage is None


def test_existing_captions_must_be_there(make_job):
    job = make_job(annotation={"mode": "Existing"})
    for index in range(4):
        job.upload(f"IMG_{index}.txt", b"CUS statue")
    code, result = job.run()
    assert (code, result.reason) == (65, Reason.DATASET_INVALID)
    assert "IMG_4.jpg" in result.message

    job.upload("IMG_4.txt", b"a statue " * 100)
    code, result = job.run()
    assert code == 0
    report = json.loads(job.running.store.output.get(job.keys.dataset_report))
    assert report["images"][4]["warnings"][-2:] == [
        "its caption does not name CUS",
        "its caption was cut to 75 CLIP tokens",
    ]


def bad_and_good(make_job, on_bad: str) -> Job:
    job = make_job(annotation={"mode": "Template"})
    job.spec["dataset"] = {"prefix": job.prefix, "onBadImage": on_bad}
    job.upload("broken.jpg", b"\xff\xd8\xff\xe0 not a jpeg")
    job.upload("empty.png", b"")
    job.upload(".DS_Store", b"ignored")
    return job


def test_bad_images_fail_the_job_and_are_named(make_job):
    job = bad_and_good(make_job, "Fail")
    code, result = job.run()
    assert (code, result.outcome, result.reason) == (65, Outcome.FAILED, Reason.DATASET_INVALID)
    assert result.dataset is not None
    assert result.dataset.skipped, "status names the files, not the message alone"
    assert "broken.jpg" in result.message
    assert "empty.png': the file is empty" in result.message
    assert ".DS_Store" not in result.message
    report = json.loads(job.running.store.output.get(job.keys.dataset_report))
    assert len(report["skipped"]) == 3
    assert not job.running.store.output.exists(job.keys.captions_manifest)


def test_bad_images_are_skipped_and_named_with_skip(make_job):
    code, result = bad_and_good(make_job, "Skip").run()
    assert code == 0
    assert result.dataset.images == 5
    assert [item.key.rsplit("/")[-1] for item in result.dataset.skipped] == [
        "broken.jpg",
        "empty.png",
        ".DS_Store",
    ]


@pytest.mark.parametrize(
    ("images", "dataset", "code", "words"),
    [
        (0, {}, 66, "no images lie under"),
        (4, {}, 65, "4 good images"),
        (5, {"maxImages": 5, "minImages": 5}, 0, ""),
        (5, {"maxImages": 4, "minImages": 1}, 65, "maxImages=4"),
    ],
)
def test_the_number_of_images_is_checked(make_job, images, dataset, code, words):
    job = make_job(images, annotation={"mode": "Template"})
    job.spec["dataset"] = {"prefix": job.prefix, **dataset}
    got, result = job.run()
    assert got == code
    assert result.reason is (Reason.CAPTIONED if code == 0 else Reason.DATASET_INVALID)
    assert words in result.message


def test_the_budget_is_not_exceeded_and_paid_captions_are_kept(make_job, messages_api):
    job = make_job(llm=messages_api, annotation={"limits": {"maxCostUSD": "0.0012"}})
    job.llm["concurrency"] = 1
    job.llm["price"] = {"input": "0.10", "output": "5"}  # a call costs 0.0005 and reserves about 0.0053
    job.spec["annotation"]["limits"]["maxCostUSD"] = "0.0063"
    code, result = job.run()
    assert (code, result.reason) == (78, Reason.BUDGET_EXCEEDED)
    bought = len(messages_api.requests)
    assert 0 < bought < 5

    rich = job.recreate()
    rich.spec = {**job.spec, "annotation": {"limits": {"maxCostUSD": "1"}}}
    code, result = rich.run()
    assert code == 0
    assert len(messages_api.requests) == 5
    assert result.captions.usage.requests == 5 - bought


def publish_adapter(job: Job, result: StageResult) -> Manifest:
    """Publish an adapter as a training stage does."""
    store = job.running.store.output
    entry = store.put(f"{job.keys.attempt(1)}adapter.safetensors", b"weights")
    adapter = AdapterStatus(
        uri=store.uri(entry.key),
        sha256=entry.sha256,
        bytes=entry.bytes,
        format="diffusers",
        manifest_key=job.keys.manifest(1),
    )
    manifest = Manifest(
        namespace=job.namespace,
        name="statue",
        uid=job.uid,
        attempt=1,
        input_hash=result.input_hash,
        adapter=adapter,
        files=[entry],
        steps=500,
        seed=0,
        first_loss=0.1,
        final_loss=0.05,
        versions={},
    )
    data = canonical_json(manifest.to_wire())
    store.put(job.keys.manifest(1), data)
    pointer = ReusePointer(manifest_key=job.keys.manifest(1), sha256=sha256_hex(data))
    store.put(reuse_pointer(job.namespace, result.input_hash), canonical_json(pointer.to_wire()))
    return manifest


def test_the_input_hash_has_the_values_of_the_recipe_for_the_images_with_captions(make_job):
    job = make_job(annotation={"mode": "Template"})

    def hashed(**settings):
        again = job.recreate()
        again.spec = {**job.spec, "training": settings}
        _, result = again.run()
        assert result.captions.total == 5
        return result.input_hash

    explicit = parse_spec(make_spec(training={"recipe": "Auto"})).with_recipe(5).training.to_wire()
    del explicit["recipe"]
    assert hashed(recipe="Auto") == hashed(recipe="Subject") == hashed(**explicit)
    assert len({hashed(recipe=name) for name in ("None", "Subject", "Person", "Style")}) == 4


def test_an_adapter_of_the_same_inputs_is_reused(make_job):
    job = make_job(annotation={"mode": "Template"})
    _, first = job.run()
    manifest = publish_adapter(job, first)

    code, result = job.recreate().run()
    assert (code, result.outcome, result.reason) == (0, Outcome.REUSED, Reason.REUSED)
    assert result.adapter == manifest.adapter
    assert result.input_hash == first.input_hash

    never = job.recreate()
    never.spec = {**job.spec, "output": {"reuse": "Never"}}
    assert never.run()[1].outcome is Outcome.CAPTIONED

    other = job.recreate()
    other.spec = {**job.spec, "training": {"seed": 1}}
    assert other.run()[1].outcome is Outcome.CAPTIONED

    job.running.store.output.put(manifest.files[0].key, b"Weights")
    assert job.recreate().run()[1].outcome is Outcome.CAPTIONED


def test_an_adapter_of_other_masks_is_not_reused(make_job):
    job = make_job(annotation={"mode": "Template"})
    _, unmasked = job.run()
    made = job.recreate()
    made.spec = {**job.spec, "annotation": {"mode": "Template", "masks": "GrabCut"}}
    _, first = made.run()
    assert first.input_hash != unmasked.input_hash
    assert any(row.get("mask") for row in made.captions())
    report = json.loads(job.running.store.output.get(made.keys.dataset_report))
    origins = {image["fileName"]: image["mask"] for image in report["images"]}
    assert origins == {row["file_name"]: "GrabCut" if row.get("mask") else "None" for row in made.captions()}
    publish_adapter(made, first)
    assert made.recreate().run()[1].outcome is Outcome.REUSED

    with Image.open(BytesIO(job.running.store.input.get(f"{job.prefix}IMG_0.jpg"))) as image:
        size = image.size
    out = BytesIO()
    Image.new("L", size, 255).save(out, "PNG")
    job.upload("IMG_0-mask.png", out.getvalue())
    assert made.recreate().run()[1].outcome is Outcome.CAPTIONED


def test_a_job_that_needs_approval_reuses_only_what_was_approved(make_job):
    job = make_job(annotation={"mode": "Template"})
    _, first = job.run()
    publish_adapter(job, first)

    waiting = job.recreate()
    waiting.spec = {**job.spec, "annotation": {"mode": "Template", "approval": "Required"}}
    assert waiting.run()[1].outcome is Outcome.CAPTIONED

    approved = job.recreate()
    annotation = {"mode": "Template", "approval": "Required"}
    approved.spec = {**job.spec, "annotation": annotation | {"approvedCaptions": first.captions.sha256}}
    assert approved.run()[1].outcome is Outcome.REUSED

    another = job.recreate()
    another.spec = {**job.spec, "annotation": annotation | {"approvedCaptions": "0" * 64}}
    assert another.run()[1].outcome is Outcome.CAPTIONED


def test_fields_are_all_of_the_schema():
    assert set(FIELDS) == {"framing", "pose", "clothing", "setting", "lighting", "other"}
