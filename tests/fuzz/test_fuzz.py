"""No input raises anything but the named errors, and every job gets a status, whatever is in it.

`make fuzz` runs this for an hour; the tests run a minute of it, with the same examples each time.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_api import API_VERSION, KIND
from lora_api.caption_rows import CaptionRowsError, read_rows
from lora_api.job import InvalidResourceError, JobSpec, parse_job_document, parse_spec
from lora_api.json_bounds import JsonBoundsError, load_json
from lora_api.keys import parse_captions_key, parse_job_key, parse_manifest_key
from lora_api.manifest import CaptionsManifest, CheckpointManifest, Manifest, ReusePointer
from lora_api.redact import redact
from lora_api.stages import StageName, StageResult, decode_result, encode_result
from lora_api.status import JobStatus, Phase, Progress
from lora_operator.decide import Decision, decide
from lora_operator.indexer import Cache
from lora_operator.observe import Resource, observe_hint, read_snapshot
from lora_operator.ownership import NotOurChildError, job_lineage, pod_lineage
from lora_operator.poller import BadResponseError, check_address, parse_response
from lora_operator.snapshot import Snapshot
from tests.fuzz.hostile import JSON, LEAVES, TEXTS, changed, of_model
from tests.support.builders import (
    CAPTIONED,
    NOW,
    PROFILE,
    REUSED,
    TRAINED,
    UID,
    annotated,
    failed,
    training,
    wire_spec,
)
from tests.support.raw_children import raw_job, raw_pod

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
hostile = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

SPEC = wire_spec(
    training={"maxSteps": 9, "preview": {"prompts": ["a"]}},
    scheduling={"nodeSelector": {"a": "b"}, "tolerations": [{"key": "a", "operator": "Exists"}]},
    runPolicy={"activeDeadlineSeconds": 60, "startDeadlineSeconds": 5, "ttlSecondsAfterFinished": 1},
)
UNLIMITED = {name: value for name, value in SPEC.items() if name != "runPolicy"}
"""Jobs have no deadlines, which would end a job before its children are read."""
RESULTS = [json.loads(encode_result(result)) for result in (CAPTIONED, TRAINED, REUSED, failed("DiskFull"))]  # type: ignore[arg-type]
STATUSES = [{}, annotated().to_wire(), training().to_wire()]

specs = st.one_of(
    st.just(UNLIMITED), st.just(UNLIMITED), st.just(SPEC), changed(SPEC), of_model(JobSpec), JSON
)
delays = st.one_of(st.integers(0, 60), st.integers(-(10**6), 10**6))
statuses = st.one_of(
    st.sampled_from(STATUSES), st.sampled_from(STATUSES).flatmap(changed), of_model(JobStatus), JSON
)
results = st.one_of(
    st.sampled_from(RESULTS).flatmap(changed).map(json.dumps),
    of_model(StageResult).map(json.dumps),
    TEXTS,
)


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """A child Job with hostile parts, or one that is as it should be."""
    kinds = ["Complete", "Failed", "FailureTarget", "Suspended"]
    conditions = draw(
        st.lists(st.fixed_dictionaries({"type": st.sampled_from(kinds), "status": st.just("True")}))
    )
    body = raw_job(
        uid=UID, stage=draw(st.sampled_from(StageName)), attempt=draw(st.integers(1, 3)),
        status={"conditions": conditions},
    )  # fmt: skip
    return draw(st.one_of(st.just(body), changed(body)))


@st.composite
def pods(draw: st.DrawFn) -> dict[str, Any]:
    """A pod of a child Job whose container wrote anything."""
    ended = {"exitCode": draw(st.sampled_from([0, 64, 75, 137])), "message": draw(results)}
    times = {
        name: draw(st.sampled_from(["2026-03-01T12:00:00Z", "9999-12-31T23:59:59Z"]))
        for name in ("startedAt", "finishedAt")
    }
    state = draw(
        st.sampled_from(
            [{"terminated": ended | times}, {"running": times}, {"waiting": {"reason": "ErrImagePull"}}, {}]
        )
    )
    body = raw_pod(
        uid=UID,
        stage=draw(st.sampled_from(StageName)),
        attempt=draw(st.integers(1, 3)),
        phase=draw(st.sampled_from(["Pending", "Running", "Succeeded", "Failed"])),
        podIP="10.0.0.1",
        containerStatuses=[{"name": "stage", "state": state}],
    )
    return draw(st.one_of(st.just(body), changed(body)))


def resource(spec: Any, status: Any) -> dict[str, Any]:
    metadata = {
        "namespace": "studio",
        "name": "statue",
        "uid": UID,
        "generation": 1,
        "creationTimestamp": "2026-03-01T12:00:00Z",
        "resourceVersion": "7",
    }
    return {"metadata": metadata, "spec": spec, "status": status}


def check_decision(snapshot: Snapshot, decision: Decision) -> None:
    """A decision has a status that the API server's schema can hold, and that the next reconcile can read."""
    wire = decision.status.to_wire()
    assert wire["phase"] in set(Phase)
    assert decision.status.conditions
    text = json.dumps(wire, ensure_ascii=False)
    assert len(text.encode()) < 1_000_000
    assert JobStatus.model_validate(json.loads(text)) is not None


@hostile
@given(specs, statuses, st.lists(jobs(), max_size=3), st.lists(pods(), max_size=3), delays)
def test_a_job_gets_a_status_whatever_is_written(
    spec: Any, status: Any, children: list[Any], stage_pods: list[Any], later: int
) -> None:
    cache = Cache()
    for version, (indexer, bodies) in enumerate([(cache.children, children), (cache.pods, stage_pods)], 2):
        for number, body in enumerate(bodies):
            metadata = body.get("metadata") if isinstance(body, dict) else None
            if isinstance(metadata, dict):
                # the API server gives every object a namespace, a name and a version
                metadata |= {"namespace": "studio", "resourceVersion": str(version)}
                metadata["name"] = (
                    metadata.get("name") if isinstance(metadata.get("name"), str) else f"x{number}"
                )
                indexer.update(body)
    item = Resource.of(resource(spec, status))
    owner = item.owner
    progress = Progress(step=3, total_steps=9)
    snapshot = read_snapshot(
        item, cache.children.by_owner(owner), cache.pods.by_owner(owner), {"default": PROFILE}
    )
    for seen in (snapshot, _with_progress(snapshot, progress)):
        check_decision(seen, decide(seen, NOW + timedelta(seconds=later)))


def _with_progress(snapshot: Snapshot, progress: Progress) -> Snapshot:
    return replace(snapshot, progress=progress)


@hostile
@given(
    st.one_of(of_model(JobSpec), JSON, changed(SPEC)),
    st.dictionaries(st.sampled_from(["name", "namespace"]), LEAVES),
)
def test_a_document_is_a_job_or_invalid(spec: Any, metadata: dict[str, Any]) -> None:
    with suppress(InvalidResourceError):
        parsed = parse_spec(spec)
        assert parse_spec(parsed.to_wire()) == parsed, "what goes out comes back"
    with suppress(InvalidResourceError):
        parse_job_document({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec})
    with suppress(InvalidResourceError):
        parse_job_document(spec)


@hostile
@given(st.text(max_size=200))
def test_yaml_of_people_is_a_job_or_invalid(text: str) -> None:
    with suppress(InvalidResourceError, yaml.YAMLError):
        parse_job_document(yaml.safe_load(text))


@hostile
@given(st.one_of(JSON, jobs(), pods()))
def test_an_object_is_a_child_or_refused(body: Any) -> None:
    for lineage in (job_lineage, pod_lineage):
        if isinstance(body, dict):
            with suppress(NotOurChildError):
                lineage(body)


@hostile
@given(st.one_of(results, st.text(max_size=300)))
def test_a_termination_message_is_a_result_or_none(message: str) -> None:
    result = decode_result(message)
    if result is not None:
        assert len(encode_result(result)) <= 64 << 10
        assert decode_result(message) == result


@hostile
@given(
    st.one_of(
        st.binary(max_size=300),
        of_model(Progress).map(lambda v: b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps(v).encode()),
    )
)
def test_an_answer_is_a_progress_or_refused(answer: bytes) -> None:
    with suppress(BadResponseError):
        progress = parse_response(answer)
        # times lose what is below a second on the wire
        Progress.model_validate(progress.to_wire())


@hostile
@given(TEXTS)
def test_texts_are_keys_addresses_or_refused(text: str) -> None:
    with suppress(BadResponseError):
        check_address(text)
    parse_job_key(text)
    parse_manifest_key(text)
    parse_captions_key(text)
    redact(text)


@hostile
@given(st.one_of(st.binary(max_size=300), JSON.map(lambda value: json.dumps(value).encode())))
def test_files_are_what_they_should_be_or_refused(data: bytes) -> None:
    with suppress(CaptionRowsError):
        read_rows(data)
    with suppress(JsonBoundsError):
        load_json(data)
    for model in (Manifest, ReusePointer, CaptionsManifest, CheckpointManifest):
        with suppress(ValueError):
            model.model_validate_json(data)


@hostile
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["reason", "note", "eventTime", "deprecatedLastTimestamp"]), TEXTS)
    )
)
def test_events_explain_or_do_not(events: list[dict[str, str]]) -> None:
    observe_hint(events)


@pytest.mark.parametrize("data", [b"[" * 900_000, b'{"a":' * 100_000, b'"' * 900_000, b"1" * 900_000])
def test_large_files_of_one_character_are_refused(data: bytes) -> None:
    with pytest.raises(JsonBoundsError):
        load_json(data)
    for model in (Manifest, ReusePointer, CaptionsManifest, CheckpointManifest):
        with pytest.raises(ValueError, match="validation error"):
            model.model_validate_json(data)
