"""Builders for table tests: the least of a thing, with what a case is about on top."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from lora_api.job import parse_spec
from lora_api.profile import Profile
from lora_api.reasons import Reason
from lora_api.status import AdapterStatus, CaptionsStatus, DatasetStatus, JobStatus, TrainingStatus
from lora_api.steps import (
    CaptionsResult,
    Outcome,
    StepName,
    StepResult,
    TrainingResult,
    encode_result,
)
from lora_operator.decide import Decision, decide
from lora_operator.names import child_name
from lora_operator.snapshot import Child, Pod, Snapshot

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
UID = "8d2f6a54-6a0a-4ef5-9b43-3f5b6b1d2c11"
CAPTIONS_SHA = "c" * 64
HASH = "sha256:" + "a" * 64
ADAPTER = AdapterStatus(
    uri="s3://loras/studio/statue/x/attempt-1/adapter.safetensors",
    sha256="b" * 64,
    bytes=1000,
    format="diffusers",
    manifest_key="studio/statue/x/attempt-1/manifest.json",
)
PROFILE = Profile.model_validate(
    {
        "namespaces": ["studio"],
        "store": {"endpoint": "minio:9000"},
        "llm": {"models": ["claude-haiku-5-5"]},
        "models": {"sdxl-base-1.0": {"source": "store", "key": "models/sdxl/"}},
    }
)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def wire_spec(**fields: Any) -> dict[str, Any]:
    return {"dataset": {"prefix": "p/"}, "concept": {"token": "CUS", "className": "statue"}, **fields}


def snapshot(*, spec: dict[str, Any] | None = None, **fields: Any) -> Snapshot:
    base = Snapshot(
        namespace="studio",
        name="statue",
        uid=UID,
        generation=1,
        created_at=NOW,
        spec=parse_spec(wire_spec(**(spec or {}))),
        profile=PROFILE,
    )
    return replace(base, **fields)


def child(step: StepName, *pods: Pod, attempt: int = 1, **fields: Any) -> Child:
    name = child_name("statue", UID, step, attempt)
    base = Child(name=name, uid=f"job-{step}-{attempt}", step=step, attempt=attempt, created_at=NOW)
    return replace(base, pods=pods, **fields)


def pod(phase: str = "Running", result: StepResult | None = None, **fields: Any) -> Pod:
    message = encode_result(result).decode() if result else ""
    base = Pod(name="statue-pod", uid="pod-1", phase=phase, message=message)
    if phase == "Running":
        base = replace(base, started_at=NOW)
    if phase in ("Succeeded", "Failed"):
        base = replace(base, started_at=NOW - seconds(60), finished_at=NOW)
    return replace(base, **fields)


CAPTIONED = StepResult(
    outcome=Outcome.CAPTIONED,
    reason=Reason.CAPTIONED,
    input_hash=HASH,
    dataset=DatasetStatus(images=6),
    captions=CaptionsResult(key="k/metadata.jsonl", sha256=CAPTIONS_SHA, dataset_sha256="d" * 64, total=6),
)
REUSED = CAPTIONED.model_copy(update={"outcome": Outcome.REUSED, "reason": Reason.REUSED, "adapter": ADAPTER})
TRAINED = StepResult(
    outcome=Outcome.TRAINED,
    reason=Reason.TRAINED,
    adapter=ADAPTER,
    training=TrainingResult(final_step=500, final_loss="0.08", seconds=60),
)


def failed(reason: Reason, message: str = "because") -> StepResult:
    return StepResult(outcome=Outcome.FAILED, reason=reason, message=message)


def annotated(**fields: Any) -> JobStatus:
    """The status of a job whose captions are ready."""
    first = decide(snapshot(**({"spec": fields.pop("spec")} if "spec" in fields else {})), NOW)
    captions = CaptionsStatus(
        attempt=1,
        job_name="a",
        total=6,
        done=6,
        key="k/metadata.jsonl",
        sha256=CAPTIONS_SHA,
        dataset_sha256="d" * 64,
    )
    return first.status.model_copy(update={"captions": captions, "input_hash": HASH, **fields})


def training(**fields: Any) -> JobStatus:
    """The status of a job whose first training Job was made."""
    name = child_name("statue", UID, StepName.TRAIN, 1)
    return annotated(training=TrainingStatus(attempt=1, job_name=name, **fields))


def condition(decision: Decision, kind: str) -> tuple[str, str] | None:
    found = next((c for c in decision.status.conditions if c.type == kind), None)
    return (found.status, str(found.reason)) if found else None
