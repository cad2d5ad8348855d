"""Every value of the settings of the annotation stage, all pairs of them, in real runs that end as designed.

And every field of them, taken to another value, changes what the stage does.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from allpairspy import AllPairs

from lora_api.job import InvalidResourceError, parse_spec
from tests.conftest import RunningStore, make_spec
from tests.support import matrix
from tests.support.rule_values import DEFAULTS
from tests.support.segmenter import upload, write_segmenter

from .conftest import Job, MessagesAPI, message

SECTIONS = ("dataset", "concept", "annotation")
TABLE = {path: values for section in SECTIONS for path, values in matrix.all_parameters((section,)).items()}


def sections(row: matrix.Row) -> dict[str, Any]:
    small: matrix.Row = {"concept.token": "CUS", "concept.className": "statue", "dataset.minImages": 1}
    return {"annotation": {}, **matrix.settings(row, small)}


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segmenter(tmp_path_factory.mktemp("segmenter"))


@pytest.fixture
def segmentation(running_store: RunningStore, segmenter: Path) -> str:
    """Return the key of a segmentation model in the store."""
    upload(running_store.store.input, segmenter, "models/segmenter/")
    return "models/segmenter/"


def is_allowed(partial: list[Any]) -> bool:
    if len(partial) < len(TABLE):
        return True
    spec = sections(dict(zip(TABLE, partial, strict=True)))
    try:
        parse_spec(make_spec(**{**spec, "dataset": {"prefix": "p/", **spec["dataset"]}}))
    except InvalidResourceError:
        return False
    return True


ROWS = [dict(zip(TABLE, row, strict=True)) for row in AllPairs(list(TABLE.values()), filter_func=is_allowed)]
OPENINGS = {
    "Subject": "a photo of CUS statue",
    "Person": "a photo of CUS statue",
    "Style": "an image in CUS statue style",
}


def test_every_value_has_a_run() -> None:
    assert matrix.missing_values(ROWS, TABLE) == []


@pytest.mark.parametrize("row", ROWS, ids=[f"run {number}" for number in range(len(ROWS))])
def test_settings_annotate_together(
    make_job: Any, messages_api: MessagesAPI, segmentation: str, record_property: Any, row: matrix.Row
) -> None:
    """Five images are annotated. The first one has a caption, and the language model refuses the first one that it gets."""
    record_property("run", 1)
    mode, failure = row["annotation.mode"], row["annotation.onCaptionFailure"]
    spec = sections(row)
    messages_api.answers += [message("", stop_reason="refusal")] * 2
    fields = '{"setting": "on a lawn", "content": "a house on a lawn"}'
    messages_api.good = lambda: message(fields)
    job: Job = make_job(llm=messages_api if mode == "LLM" else None, **spec)
    job.segmentation = segmentation
    job.spec["dataset"]["prefix"] = job.prefix
    if job.llm:
        job.llm["concurrency"] = 1
    job.upload("IMG_0.txt", f"{OPENINGS['Subject']} by hand".encode())
    job.upload("broken.jpg", b"not an image")
    code, result = job.run()

    keeps = mode == "Existing" or row["annotation.existingCaptions"] == "Keep"
    asked = 0 if mode != "LLM" else 4 if keeps else 5
    without = {"Template": 0, "Existing": 4, "LLM": 1}[mode]
    if row["dataset.onBadImage"] == "Fail" or (without and failure == "Fail"):
        assert code == 65
        assert ("broken.jpg" if row["dataset.onBadImage"] == "Fail" else "no caption") in result.message
        return
    assert code == 0, result.message
    texts = [line["text"] for line in job.captions()]
    opening = OPENINGS[row["concept.type"]]
    expected = {
        "by hand": int(keeps),
        "template": {"Template": 5 - int(keeps), "Existing": 4, "LLM": 1}[mode]
        if mode == "Template" or failure == "Template"
        else 0,
        "model": max(0, asked - 1),
    }
    found = {
        "by hand": sum(text.endswith("by hand") for text in texts),
        "template": texts.count(opening),
        "model": sum(text.startswith(f"{opening}, ") for text in texts),
    }
    assert found == expected
    assert len(texts) == sum(expected.values())
    assert len(messages_api.requests) == (asked + 1 if asked else 0)
    assert any("broken.jpg" in item.key for item in result.dataset.skipped)
    assert any(line.get("mask") for line in job.captions()) == (row["annotation.masks"] != "Own")


OTHERS: dict[str, tuple[Any, Any]] = {
    "dataset.prefix": ("", "other/"),  # below the job's own prefix
    "dataset.minImages": (1, 6),
    "dataset.maxImages": (5, 4),
    "concept.token": ("CUS", "ZWX"),
    "concept.className": ("statue", "rock"),
    "annotation.instructions": ("", "Name the season."),
    "annotation.limits.maxCostUSD": ("1", "0.000001"),
}
"""Two values for each field that is not an enum. The job has five images, and another one in a subfolder."""
ELSEWHERE = {
    "annotation.model": "read by the operator: test_every_setting",
    "annotation.approval": "read by the operator: test_every_setting",
    "annotation.approvedCaptions": "read by the operator: test_every_setting",
}
"""Fields that the stage does not read, with the test of their effect."""
FIELDS = [path for path in matrix.leaves(*SECTIONS) if path not in ELSEWHERE]


def outcome(make_job: Any, messages_api: MessagesAPI, segmentation: str, row: matrix.Row) -> dict[str, Any]:
    """Return the requests to the language model, the objects in the store and the result of a run, without names that differ between runs."""
    row = {"dataset.onBadImage": "Skip", "annotation.onCaptionFailure": "Skip", **row}
    if row.get("annotation.mode", "LLM") == "Template":
        del row["annotation.onCaptionFailure"]  # refused, because every image gets a caption
    spec = sections(row)
    messages_api.requests.clear()
    messages_api.answers[:] = [message("", stop_reason="refusal")] * 2
    messages_api.good = lambda: message('{"setting": "on a lawn", "content": "a house on a lawn"}')
    job: Job = make_job(llm=messages_api if spec["annotation"].get("mode") != "Template" else None, **spec)
    job.segmentation = segmentation
    job.spec["dataset"]["prefix"] = job.prefix + row.get("dataset.prefix", "")
    if job.llm:
        job.llm["concurrency"] = 1
    job.upload("IMG_0.txt", b"a photo of CUS statue by hand")
    job.upload("broken.jpg", b"not an image")
    job.upload("other/IMG_9.jpg", job.running.store.input.get(f"{job.prefix}IMG_4.jpg"))
    code, result = job.run()
    output, root = job.running.store.output, job.keys.root
    stored = {item.key.removeprefix(root): output.get(item.key) for item in output.list(root, 1000)}
    seen = {
        "code": code,
        "reason": result.reason,
        "message": result.message,
        "dataset": result.dataset.to_wire() if result.dataset else None,
        "requests": messages_api.requests,
        "captions": stored.get(job.keys.captions.removeprefix(root), b"").decode(),
        "stored": sorted(stored),
        "masks": {name: sha256(data).hexdigest() for name, data in stored.items() if "-mask" in name},
    }
    text = json.dumps(seen)
    for name in (job.prefix, job.namespace, job.uid):
        text = text.replace(name, "")
    found: dict[str, Any] = json.loads(text)
    return found


def test_every_field_has_a_value_to_try() -> None:
    assert {*TABLE, *OTHERS} - {*ELSEWHERE} == {*FIELDS}
    assert [path for path, (_, other) in OTHERS.items() if other == DEFAULTS[path]] == []


def test_the_same_settings_leave_the_same(
    make_job: Any, messages_api: MessagesAPI, segmentation: str
) -> None:
    """Otherwise the test below would pass for a field without effect."""
    first = outcome(make_job, messages_api, segmentation, {})
    assert first["captions"]
    assert first["requests"]
    assert outcome(make_job, messages_api, segmentation, {}) == first


@pytest.mark.parametrize("path", FIELDS)
def test_another_value_changes_the_run(
    make_job: Any, messages_api: MessagesAPI, segmentation: str, record_property: Any, path: str
) -> None:
    record_property("field", path)
    found: list[dict[str, Any]] = []
    for value in TABLE.get(path) or OTHERS[path]:
        mine = outcome(make_job, messages_api, segmentation, {path: value})
        assert all(mine != other for other in found), value
        found.append(mine)
