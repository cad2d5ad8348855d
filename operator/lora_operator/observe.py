"""I/O in: from the API server's objects to a `Snapshot`."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from lora_api.job import InvalidResourceError, describe, parse_spec
from lora_api.profile import Profile
from lora_api.reasons import Reason
from lora_api.status import JobStatus, Phase
from lora_api.steps import StepName

from . import names
from .snapshot import Child, Hint, Pod, Snapshot


@dataclass(frozen=True)
class Resource:
    """A `LoraTrainingJob` as it was last seen, kept small: thousands of them wait in memory."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    phase: str
    mortal: bool
    """Whether it is to be removed some time after its end."""
    body: bytes
    """Compressed JSON."""

    @property
    def ended(self) -> bool:
        return self.phase in (Phase.SUCCEEDED, Phase.FAILED)

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Resource:
        metadata = body["metadata"]
        kept = {name: metadata.get(name) for name in ("generation", "creationTimestamp")}
        status = body.get("status")
        phase = status.get("phase") if isinstance(status, Mapping) else None
        spec = body.get("spec")
        policy = spec.get("runPolicy") if isinstance(spec, Mapping) else None
        data = {"metadata": kept, "spec": spec, "status": status}
        return cls(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            resource_version=metadata["resourceVersion"],
            phase=str(phase or Phase.PENDING),
            mortal=isinstance(policy, Mapping) and policy.get("ttlSecondsAfterFinished") is not None,
            body=zlib.compress(json.dumps(data, default=dict).encode(), level=1),
        )


@dataclass(frozen=True)
class StepPod:
    """A pod and whose it is."""

    uid: str
    """Of the resource."""
    namespace: str
    resource_name: str
    job_name: str
    step: StepName
    pod: Pod


def read_snapshot(
    resource: Resource,
    children: Iterable[Child],
    pods: Iterable[StepPod],
    profiles: Mapping[str, Profile],
) -> Snapshot:
    """Put together what is known of one job."""
    body = json.loads(zlib.decompress(resource.body))
    metadata = body["metadata"]
    spec, spec_error = None, ""
    try:
        spec = parse_spec(body["spec"])
    except InvalidResourceError as error:
        spec_error = str(error)
    status, status_error = JobStatus(), ""
    try:
        status = JobStatus.model_validate(body["status"] or {})
    except ValidationError as error:
        status_error = describe(error, "status")
    jobs = {child.name: child for child in children}
    of_job: dict[str, list[Pod]] = {}
    leftovers = set()
    for item in pods:
        of_job.setdefault(item.job_name, []).append(item.pod)
        if item.job_name not in jobs and item.pod.live:
            leftovers.add(item.step)
    return Snapshot(
        namespace=resource.namespace,
        name=resource.name,
        uid=resource.uid,
        generation=metadata["generation"],
        created_at=parse_time(metadata["creationTimestamp"]) or datetime.now(UTC),
        spec=spec,
        spec_error=spec_error,
        status=status,
        status_error=status_error,
        profile=profiles.get(spec.profile) if spec else None,
        children=tuple(replace(c, pods=tuple(of_job.get(c.name, ()))) for c in jobs.values()),
        leftovers=frozenset(leftovers),
    )


def observe_job(body: Mapping[str, Any]) -> Child:
    """A batch/v1 Job of ours, without its pods."""
    metadata, status = body["metadata"], body.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or () if c.get("status") == "True"}
    failed = conditions.get("Failed", {})
    return Child(
        name=metadata["name"],
        uid=metadata["uid"],
        step=StepName(metadata["labels"][names.STEP]),
        attempt=int(metadata["labels"][names.ATTEMPT]),
        created_at=parse_time(metadata["creationTimestamp"]) or datetime.now(UTC),
        deleting="deletionTimestamp" in metadata,
        suspended=bool(body["spec"].get("suspend")),
        complete="Complete" in conditions,
        failed=failed.get("reason", ""),
        failed_message=failed.get("message", ""),
    )


def observe_step_pod(body: Mapping[str, Any]) -> StepPod:
    metadata = body["metadata"]
    return StepPod(
        uid=metadata["labels"][names.JOB_UID],
        namespace=metadata["namespace"],
        resource_name=metadata["annotations"][names.JOB_NAME],
        job_name=metadata["labels"]["batch.kubernetes.io/job-name"],
        step=StepName(metadata["labels"][names.STEP]),
        pod=_observe_pod(body),
    )


def _observe_pod(body: Mapping[str, Any]) -> Pod:
    metadata, status = body["metadata"], body.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    scheduled, disrupted = conditions.get("PodScheduled", {}), conditions.get("DisruptionTarget", {})
    containers = status.get("containerStatuses") or ()
    state = containers[0].get("state") or {} if containers else {}
    waiting, ended = state.get("waiting"), state.get("terminated") or {}
    started = (state.get("running") or ended).get("startedAt")
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        phase=status.get("phase", "Pending"),
        node=body["spec"].get("nodeName") or "",
        ip=status.get("podIP") or "",
        deleting="deletionTimestamp" in metadata,
        waiting=(waiting.get("reason") or "", waiting.get("message") or "") if waiting else None,
        unschedulable=scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else "",
        disrupted=disrupted.get("reason", "") if disrupted.get("status") == "True" else "",
        exit_code=ended.get("exitCode"),
        oom_killed=ended.get("reason") == "OOMKilled",
        message=ended.get("message") or "",
        started_at=parse_time(started),
        finished_at=parse_time(ended.get("finishedAt")),
    )


def unexplained(snapshot: Snapshot, now: datetime) -> str:
    """The UID of what a step waits on when only Events can say why; empty when nothing waits so.

    A pod's own status tells of images and of scheduling; a quota refuses the pod to its Job, and a
    missing Secret keeps it in ContainerCreating, and both are told in Events alone.
    """
    for child in snapshot.children:
        waited = (now - child.created_at).total_seconds()
        if child.ended or child.deleting or child.suspended or waited < PATIENCE_SECONDS:
            continue
        pods = [pod for pod in child.pods if pod.live]
        if not pods:
            return child.uid
        if pods[0].phase == "Pending" and not pods[0].unschedulable:
            return pods[0].uid
    return ""


PATIENCE_SECONDS = 2.0
MISSING = ("FailedMount", "FailedAttachVolume")
REFUSED = "FailedCreate"
COMPLAINTS = (*MISSING, REFUSED)
"""Reasons of Events that say why a step does not start."""


def observe_hint(events: Iterable[Mapping[str, Any]]) -> Hint | None:
    """The newest Event that explains why a step does not start; None when none does."""
    newest = sorted(
        events, key=lambda e: str(e.get("deprecatedLastTimestamp") or e.get("eventTime") or ""), reverse=True
    )
    for event in newest:
        reason, message = event.get("reason", ""), event.get("note", "")
        if reason in MISSING and "secret" in message.lower():
            return Hint(Reason.SECRET_NOT_FOUND, f"{message} (it may still be on its way)")
        if reason in MISSING:
            return Hint(Reason.CONFIGURATION_INVALID, message)
        if reason == REFUSED:
            return Hint(why_refused(message), message)
    return None


def why_refused(message: str) -> Reason:
    """What the API server's words for a Job or a pod that it does not let in come to."""
    return Reason.QUOTA_EXCEEDED if "exceeded quota" in message else Reason.CONFIGURATION_INVALID


def parse_time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
