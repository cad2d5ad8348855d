"""Builders of minimal objects for table tests; keyword arguments override fields."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from lora_api.job import parse_spec
from lora_api.keys import JobKeys
from lora_api.profile import Profile
from lora_api.reasons import Reason
from lora_api.stages import CaptionsResult, Outcome, StageName, StageResult, TrainingResult, encode_result
from lora_api.status import AdapterStatus, CaptionsStatus, DatasetStatus, JobStatus, TrainingStatus
from lora_operator.decide import Decision, decide
from lora_operator.names import child_name
from lora_operator.snapshot import Child, Pod, Snapshot

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
UID = "8d2f6a54-6a0a-4ef5-9b43-3f5b6b1d2c11"
CAPTIONS_SHA = "c" * 64
HASH = "sha256:" + "a" * 64
KEYS = JobKeys("studio", "statue", UID)
ADAPTER = AdapterStatus(
    uri=f"s3://loras/{KEYS.attempt(1)}adapter.safetensors",
    sha256="b" * 64,
    bytes=1000,
    format="diffusers",
    manifest_key=KEYS.manifest(1),
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


def child(stage: StageName, *pods: Pod, attempt: int = 1, **fields: Any) -> Child:
    name = child_name("statue", UID, stage, attempt)
    base = Child(name=name, uid=f"job-{stage}-{attempt}", stage=stage, attempt=attempt, created_at=NOW)
    return replace(base, pods=pods, **fields)


def pod(phase: str = "Running", result: StageResult | None = None, **fields: Any) -> Pod:
    message = encode_result(result).decode() if result else ""
    base = Pod(name="statue-pod", uid="pod-1", phase=phase, message=message)
    if phase == "Running":
        base = replace(base, started_at=NOW)
    if phase in ("Succeeded", "Failed"):
        base = replace(base, started_at=NOW - seconds(60), finished_at=NOW)
    return replace(base, **fields)


CAPTIONED = StageResult(
    outcome=Outcome.CAPTIONED,
    reason=Reason.CAPTIONED,
    input_hash=HASH,
    dataset=DatasetStatus(images=6),
    captions=CaptionsResult(key=KEYS.captions, sha256=CAPTIONS_SHA, dataset_sha256="d" * 64, total=6),
)
REUSED = CAPTIONED.model_copy(update={"outcome": Outcome.REUSED, "reason": Reason.REUSED, "adapter": ADAPTER})
TRAINED = StageResult(
    outcome=Outcome.TRAINED,
    reason=Reason.TRAINED,
    adapter=ADAPTER,
    training=TrainingResult(final_step=500, final_loss="0.08", seconds=60),
)


def relocate(result: StageResult, keys: JobKeys) -> StageResult:
    """Return a result whose objects lie under another job's prefix instead of the statue's."""
    captions, adapter = result.captions, result.adapter
    if captions:
        captions = captions.model_copy(update={"key": keys.captions})
    if adapter:
        moved = {
            "uri": adapter.uri.replace(KEYS.root, keys.root),
            "manifest_key": adapter.manifest_key.replace(KEYS.root, keys.root),
        }
        adapter = adapter.model_copy(update=moved)
    return result.model_copy(update={"captions": captions, "adapter": adapter})


def failed(reason: Reason, message: str = "because") -> StageResult:
    return StageResult(outcome=Outcome.FAILED, reason=reason, message=message)


def annotated(**fields: Any) -> JobStatus:
    """Return the status of a LoraTrainingJob whose captions are ready."""
    first = decide(snapshot(**({"spec": fields.pop("spec")} if "spec" in fields else {})), NOW)
    captions = CaptionsStatus(
        attempt=1,
        job_name="a",
        total=6,
        done=6,
        key=KEYS.captions,
        sha256=CAPTIONS_SHA,
        dataset_sha256="d" * 64,
    )
    return first.status.model_copy(update={"captions": captions, "input_hash": HASH, **fields})


def training(**fields: Any) -> JobStatus:
    """Return the status of a LoraTrainingJob whose first training child Job exists."""
    name = child_name("statue", UID, StageName.TRAIN, 1)
    return annotated(training=TrainingStatus(attempt=1, job_name=name, **fields))


def message(decision: Decision) -> str:
    """Return the message of the condition Succeeded."""
    return next(c.message for c in decision.status.conditions if c.type == "Succeeded")


def condition(decision: Decision, kind: str) -> tuple[str, str] | None:
    match = next((c for c in decision.status.conditions if c.type == kind), None)
    return (match.status, str(match.reason)) if match else None
