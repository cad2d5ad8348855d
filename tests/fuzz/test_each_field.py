"""Each field of what a pod, a child Job or a stored status says is hostile once, while everything else is as it should be.

Random changes rarely make a field hostile whose object is otherwise believed. This tries every one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from lora_api.stages import StageName, StageResult, encode_result
from lora_api.status import JobStatus, PreviewStatus, Progress, Usage
from lora_operator.decide import decide
from lora_operator.indexer import Cache
from lora_operator.observe import Resource, StagePod, read_snapshot
from lora_operator.poller import BadResponseError, parse_response
from lora_operator.snapshot import Snapshot
from tests.fuzz.test_fuzz import UNLIMITED, check_decision, resource
from tests.support.builders import CAPTIONED, KEYS, NOW, PROFILE, REUSED, TRAINED, UID, failed
from tests.support.raw_children import raw_job, raw_pod

VALUES: list[Any] = [
    None, True, -1, 2**31, 2**63, 10**30, 1.5, float("nan"), float("inf"), "", "x" * 3000, "\x1b[2J\u202e\n\x00", "\ud800",
    "../..", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59", "1e999999999", [], [[]], {}, {"": None}, ["x"] * 2000,
]  # fmt: skip
USAGE = Usage.model_validate({"requests": 1, "inputTokens": 2, "outputTokens": 3, "costUSD": "0.1"})
TRAINED_FULLY = TRAINED.model_copy(
    update={
        "training": TRAINED.training and TRAINED.training.model_copy(update={"resumed_from_step": 3}),
        "previews": [PreviewStatus(step=5, prompt="a", key=f"{KEYS.attempt(1)}previews/0.png")],
    }
)
CAPTIONED_FULLY = CAPTIONED.model_copy(
    update={"captions": CAPTIONED.captions and CAPTIONED.captions.model_copy(update={"usage": USAGE})}
)
RESULTS = {
    StageName.ANNOTATE: (CAPTIONED_FULLY, REUSED, failed("DiskFull")),  # type: ignore[arg-type]
    StageName.TRAIN: (TRAINED_FULLY, failed("DiskFull")),  # type: ignore[arg-type]
}
CASES = [(stage, result) for stage, results in RESULTS.items() for result in results]


def hostile_variants(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield copies of a JSON value with one part replaced, each with the path of that part."""
    for path in _paths(value):
        for bad in VALUES:
            changed = copy.deepcopy(value)
            holder = changed
            for part in path[:-1]:
                holder = holder[part]
            holder[path[-1]] = bad
            yield f"{'.'.join(map(str, path))} = {bad!r:.40}", changed


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def observe(status: Any, children: list[tuple[dict[str, Any], dict[str, Any]]]) -> Snapshot:
    """Observe a job with child Jobs and a pod of each. Objects that are refused are left out, as in the operator."""
    cache = Cache()
    for job, pod in children:
        for body, update in ((job, cache.children.update), (pod, cache.pods.update)):
            update(body)
    item = Resource.of(resource(UNLIMITED, status))
    owned: list[StagePod] = cache.pods.by_owner(item.owner)
    return read_snapshot(item, cache.children.by_owner(item.owner), owned, {"default": PROFILE})


def ended(stage: StageName, message: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first child Job of a stage and its pod, complete with a termination message."""
    times = {"startedAt": "2026-03-01T12:00:00Z", "finishedAt": "2026-03-01T12:00:20Z"}
    state = {"terminated": {"exitCode": 0, "message": message, "reason": "Completed"} | times}
    conditions = [{"type": "Complete", "status": "True", "reason": "x", "message": "y"}]
    job = raw_job(uid=UID, stage=stage, status={"conditions": conditions})
    pod = raw_pod(
        uid=UID,
        stage=stage,
        phase="Succeeded",
        podIP="10.0.0.1",
        reason="",
        message="",
        conditions=[{"type": "DisruptionTarget", "status": "False", "reason": "x", "message": "y"}],
        containerStatuses=[{"name": "stage", "state": state}],
    )
    return job, pod


def status_before(stage: StageName) -> dict[str, Any]:
    """The stored status when the first child Job of a stage has been started."""
    status: Any = {}
    if stage == StageName.TRAIN:
        captioned = ended(StageName.ANNOTATE, encode_result(CAPTIONED_FULLY).decode())
        status = decide(observe({}, []), NOW).status.to_wire()
        status = decide(observe(status, [captioned]), NOW).status.to_wire()
        assert status["captions"]["sha256"]
    return decide(observe(status, []), NOW).status.to_wire()


def check(where: str, snapshot: Snapshot) -> None:
    try:
        check_decision(snapshot, decide(snapshot, NOW + timedelta(seconds=30)))
    except Exception as error:
        raise AssertionError(f"{where}: {error!r}") from error


@pytest.mark.parametrize(("stage", "result"), CASES, ids=lambda value: str(getattr(value, "outcome", value)))
def test_each_field_of_a_result(stage: StageName, result: StageResult) -> None:
    status, wire = status_before(stage), json.loads(encode_result(result))
    believed = observe(status, [ended(stage, json.dumps(wire))])
    assert decide(believed, NOW + timedelta(seconds=30)).status != believed.status
    for where, hostile in hostile_variants(wire):
        check(where, observe(status, [ended(stage, json.dumps(hostile))]))


@pytest.mark.parametrize("stage", StageName)
@pytest.mark.parametrize("part", ["job", "pod"])
def test_each_field_of_a_child(stage: StageName, part: str) -> None:
    status = status_before(stage)
    job, pod = ended(stage, encode_result(RESULTS[stage][0]).decode())
    for where, hostile in hostile_variants((job if part == "job" else pod)["status"]):
        children = ({**job, "status": hostile}, pod) if part == "job" else (job, {**pod, "status": hostile})
        check(where, observe(status, [children]))


@pytest.mark.parametrize("stage", StageName)
def test_each_field_of_a_stored_status(stage: StageName) -> None:
    """A tenant with a right to the status can write it, too."""
    child = ended(stage, encode_result(RESULTS[stage][0]).decode())
    # `effective` holds any object: it is written and never read
    status = {name: value for name, value in status_before(stage).items() if name != "effective"}
    for where, hostile in hostile_variants(status):
        check(where, observe(hostile, [child]))


def test_each_field_of_a_progress() -> None:
    wire = Progress(step=3, total_steps=9, loss="0.1", steps_per_second="1", eta_seconds=1, reported_at=NOW)
    for where, hostile in hostile_variants(wire.to_wire()):
        try:
            progress = parse_response(b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps(hostile).encode())
        except BadResponseError:
            continue
        read = JobStatus(progress=progress).to_wire()
        assert JobStatus.model_validate(read) is not None, where
