"""Conversion of the API server's objects into cached items and a `Snapshot`.

The module has more than 16 KB, because everything that reads raw objects is in it: their content is not trusted.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from lora_api.job import MAX_SPEC_BYTES, InvalidResourceError, check_spec_size, describe, parse_spec
from lora_api.profile import Profile
from lora_api.reasons import Reason
from lora_api.stages import StageName
from lora_api.status import ConditionType, JobStatus, Phase

from . import names
from .ownership import Lineage, Owner, job_lineage, pod_lineage
from .snapshot import Child, Hint, Pod, Snapshot, stage_status

MAX_TEXT = 4096
"""Characters that are kept of a text of a pod or a child Job."""
MAX_FINALIZERS, MAX_NAME = 3, 100
"""Finalizers of a child Job that are kept, and the characters of each."""
MAX_STATUS_BYTES = 512 << 10
"""Largest status that is read, in bytes of JSON. The operator writes far less."""
EXPLAIN_AFTER_SECONDS = 2.0
"""Age of a child Job from which Events are read about it: most pods start before."""
MOUNT_FAILURES = ("FailedMount", "FailedAttachVolume")
"""Reasons of the kubelet's Events about a volume that cannot be mounted, such as that of a missing Secret."""
MOUNT_RETRY = timedelta(minutes=2.5)
"""Longest time until the kubelet tries to mount a volume again, and reports a failure again."""
CREATE_FAILURE = "FailedCreate"
"""Reason of the Job controller's Event about a pod that is not admitted, for example because of a quota."""
EXPLAINING_EVENTS = (*MOUNT_FAILURES, CREATE_FAILURE)
"""Reasons of Events that say why a stage does not start."""


@dataclass(frozen=True)
class Resource:
    """A `LoraTrainingJob` as last seen. Its body is compressed, because thousands of finished ones stay in memory."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    created_at: str
    phase: str
    profile: str
    deleting: bool
    suspended: bool
    has_ttl: bool
    """Whether `runPolicy.ttlSecondsAfterFinished` is set."""
    finished_at: str
    """When the job ended; empty while it has not."""
    announced: bool
    """Whether the result of the profile's webhook is in the status."""
    retry_requested: bool
    """Whether the job has failed and `runPolicy.retry` was raised since."""
    child_uids: frozenset[str]
    """UIDs of the child Jobs in the status. An empty one: of a status of an earlier version."""
    body: bytes
    """Compressed JSON of the metadata, spec and status that `read_snapshot` needs."""

    @property
    def owner(self) -> Owner:
        """The key by which its children are indexed."""
        return self.namespace, self.uid

    @property
    def needs_work(self) -> bool:
        """Whether the operator may have something to do even if no event arrives."""
        return not self.ended or self.has_ttl or self.retry_requested

    @property
    def ended(self) -> bool:
        return self.phase in (Phase.SUCCEEDED, Phase.FAILED)

    @property
    def may_start(self) -> bool:
        """Whether its next decision may start a stage: it has not ended, or is to be tried again."""
        return not self.ended or self.retry_requested

    def runs(self, children: Iterable[Child]) -> bool:
        """Return whether a child Job that the status names has not ended. Others may be forged, to take a place."""
        known = self.child_uids
        return not self.ended and any(
            not child.ended and (child.uid in known or "" in known) for child in children
        )

    def has_pods(self, pods: Iterable[StagePod]) -> bool:
        """Return whether a pod of a child Job that the status names has not terminated."""
        return any(item.pod.live and item.lineage.job_uid in self.child_uids for item in pods)

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Resource:
        """Reduce a resource to what is cached. Its spec and status may be invalid; `read_snapshot` validates them."""
        metadata = body["metadata"]
        spec, status = body.get("spec"), body.get("status")
        policy = _mapping(_mapping(spec).get("runPolicy"))
        phase = str(_mapping(status).get("phase") or Phase.PENDING)
        stages = [_mapping(_mapping(status).get(name)) for name in ("captions", "training")]
        return cls(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            resource_version=metadata["resourceVersion"],
            created_at=str(metadata.get("creationTimestamp") or ""),
            phase=phase,
            profile=str(_mapping(spec).get("profile") or "default")[:63],
            deleting="deletionTimestamp" in metadata,
            suspended=policy.get("suspend") is True,
            has_ttl=policy.get("ttlSecondsAfterFinished") is not None,
            finished_at=str(_mapping(status).get("finishTime") or ""),
            announced=bool(_mapping(status).get("webhook")),
            retry_requested=phase == Phase.FAILED
            and _number(policy.get("retry")) > _number(_mapping(status).get("retries")),
            child_uids=frozenset(
                str(stage.get("jobUID") or "")
                for stage in stages
                if stage.get("jobUID") or stage.get("jobName")
            ),
            body=zlib.compress(_encode(metadata, spec, status), level=1),
        )


def _encode(metadata: Mapping[str, Any], spec: Any, status: Any) -> bytes:
    """Return the JSON of the metadata, spec and status that `read_snapshot` needs."""
    kept = {name: metadata.get(name) for name in ("generation", "creationTimestamp")}
    data = {"metadata": kept, "spec": spec, "status": status, "specError": "", "statusError": ""}
    try:
        encoded = json.dumps(data, default=dict).encode()
    except (ValueError, RecursionError):
        encoded = b""
    # if all of it is small enough, each part is
    if encoded and len(encoded) <= min(MAX_SPEC_BYTES, MAX_STATUS_BYTES):
        return encoded
    return json.dumps(data | _replace_large(spec, status), default=dict).encode()


def _replace_large(spec: Any, status: Any) -> dict[str, Any]:
    """Return error messages in place of a spec and a status that are too large, so that they do not fill the memory."""
    changes: dict[str, Any] = {}
    try:
        check_spec_size(spec)
    except InvalidResourceError as error:
        changes |= {"spec": None, "specError": str(error)}
    size = len(json.dumps(status, default=dict))
    if size > MAX_STATUS_BYTES:
        message = f"status: must be at most {MAX_STATUS_BYTES} bytes; it has {size}"
        changes |= {"status": None, "statusError": message}
    return changes


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


@dataclass(frozen=True)
class StagePod:
    """A pod and where it belongs."""

    lineage: Lineage
    pod: Pod

    @property
    def namespace(self) -> str:
        return self.lineage.owner[0]


def read_snapshot(
    resource: Resource,
    children: Iterable[Child],
    pods: Iterable[StagePod],
    profiles: Mapping[str, Profile],
) -> Snapshot:
    """Build the snapshot of one job, without its progress and hint."""
    body = json.loads(zlib.decompress(resource.body))
    metadata = body["metadata"]
    spec, spec_error = None, body["specError"]
    try:
        stored = isinstance(body["status"], dict) and bool(body["status"].get("observedGeneration"))
        spec = None if spec_error else parse_spec(body["spec"], stored=stored)
    except InvalidResourceError as error:
        spec_error = str(error)
    status, status_error = JobStatus(), body["statusError"]
    try:
        status = JobStatus.model_validate(body["status"] or {})
        if status.phase.terminal and status.condition(ConditionType.SUCCEEDED) is None:
            status_error = f"status.conditions: the phase {status.phase} needs a condition Succeeded"
            status = JobStatus()
    except ValidationError as error:
        status_error = describe(error, "status")
    # The operator cannot have created a child Job of a later attempt, unless a person edited its status. All are kept if
    # the job has ended or its status cannot be read, because then child Jobs are only stopped.
    stops_all = status.phase.terminal or bool(status_error)
    jobs = {
        child.name: child
        for child in children
        if stops_all or child.attempt <= _last_attempt(status, child.stage) + 1
    }
    by_job: dict[str, list[Pod]] = {}
    uids = {child.uid for child in jobs.values()}
    orphaned_pods: dict[StageName, str] = {}
    for item in pods:
        # by UID: a pod of a deleted Job is not one of its successor of the same name
        by_job.setdefault(item.lineage.job_uid, []).append(item.pod)
        if item.lineage.job_uid not in uids and item.pod.live:
            orphaned_pods[item.lineage.stage] = item.pod.name
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
        children=tuple(
            replace(child, pods=tuple(by_job.get(child.uid, ())), recorded=_is_recorded(status, child))
            for child in jobs.values()
        ),
        orphaned_pods=orphaned_pods,
        deleting=resource.deleting,
    )


def _last_attempt(status: JobStatus, stage: StageName) -> int:
    """Return the newest attempt in the status. A child Job of the next attempt may exist too, but none of a later one."""
    known = stage_status(status, stage)
    return known.attempt if known else 0


def _is_recorded(status: JobStatus, child: Child) -> bool:
    """Return whether a child Job is the one that the status names.

    A tenant can delete the operator's Job and create another one of its name. A Job of the next attempt exists if the
    status was not written after its creation. It is recorded when the operator tries to create it again. Statuses of
    earlier versions have no UID.
    """
    known = stage_status(status, child.stage)
    if known is None or child.attempt > known.attempt:
        return False
    return child.attempt < known.attempt or known.job_uid in ("", child.uid)


def observe_job(body: Mapping[str, Any]) -> Child:
    """Reduce a child Job to what decisions need, without its pods.

    Raises:
        NotOurChildError: when it is not a child of a job.
    """
    lineage = job_lineage(body)
    metadata, conditions = body["metadata"], _true_conditions(body)
    failed = conditions.get("Failed", {})
    return Child(
        name=metadata["name"],
        uid=metadata["uid"],
        stage=lineage.stage,
        attempt=lineage.attempt,
        created_at=parse_time(metadata["creationTimestamp"]) or datetime.now(UTC),
        deleting="deletionTimestamp" in metadata,
        finalizers=_foreign_finalizers(metadata),
        suspended=bool(body["spec"].get("suspend")),
        complete=is_complete(body),
        failed=failed.get("reason", ""),
        failed_message=failed.get("message", "")[:MAX_TEXT],
    )


def _true_conditions(job: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the conditions of a child Job that are True, by type."""
    conditions = (job.get("status") or {}).get("conditions") or ()
    return {each["type"]: each for each in conditions if each.get("status") == "True"}


def is_complete(job: Mapping[str, Any]) -> bool:
    """Return whether a child Job, as the API server returns it, has succeeded."""
    return "Complete" in _true_conditions(job)


def _foreign_finalizers(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the finalizers that are not Kubernetes' own, whose names have no domain."""
    foreign = [str(name)[:MAX_NAME] for name in metadata.get("finalizers") or () if "/" in str(name)]
    return tuple(foreign[:MAX_FINALIZERS])


def observe_stage_pod(body: Mapping[str, Any]) -> StagePod:
    """Reduce a pod to what decisions need.

    Raises:
        NotOurChildError: when it cannot be a pod of a child Job.
    """
    return StagePod(lineage=pod_lineage(body), pod=_observe_pod(body))


def _observe_pod(body: Mapping[str, Any]) -> Pod:
    metadata, status = body["metadata"], body.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    scheduled, disrupted = conditions.get("PodScheduled", {}), conditions.get("DisruptionTarget", {})
    is_disrupted = disrupted.get("status") == "True"
    containers = status.get("containerStatuses") or ()
    state = next((c.get("state") or {} for c in containers if c.get("name") == names.STAGE_CONTAINER), {})
    ended = state.get("terminated") or {}
    waiting_container, waiting = _find_waiting(status)
    started = (state.get("running") or ended).get("startedAt")
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        phase=status.get("phase", "Pending"),
        node=body["spec"].get("nodeName") or "",
        ip=status.get("podIP") or "",
        deleting="deletionTimestamp" in metadata,
        waiting=waiting,
        waiting_container=waiting_container,
        unschedulable=scheduled.get("message", "")[:MAX_TEXT]
        if scheduled.get("reason") == "Unschedulable"
        else "",
        disrupted=disrupted.get("reason", "")[:MAX_TEXT] if is_disrupted else "",
        disruption_message=disrupted.get("message", "")[:MAX_TEXT] if is_disrupted else "",
        status_reason=(status.get("reason") or "")[:MAX_TEXT],
        status_message=(status.get("message") or "")[:MAX_TEXT],
        node_not_ready=_is_node_not_ready(conditions),
        failed_container=_find_failed(status),
        exit_code=ended.get("exitCode"),
        oom_killed=ended.get("reason") == "OOMKilled",
        message=(ended.get("message") or "")[:MAX_TEXT],
        created_at=parse_time(metadata.get("creationTimestamp")),
        started_at=parse_time(started),
        finished_at=parse_time(ended.get("finishedAt")),
    )


def is_ending(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod, as the API server returns it, or one of its containers has ended or is being ended."""
    status = pod.get("status") or {}
    return (
        "deletionTimestamp" in pod["metadata"]
        or status.get("phase") in ("Succeeded", "Failed")
        or any("terminated" in (c.get("state") or {}) for c in status.get("containerStatuses") or ())
    )


def _find_waiting(status: Mapping[str, Any]) -> tuple[str, tuple[str, str] | None]:
    """Find the container that keeps a pod from starting.

    Returns:
        The container's name, empty for the stage's own, and its reason and message; None when no container waits.

    A native sidecar is an init container: while it does not start, the stage's container waits with the
    reason PodInitializing, which explains nothing.
    """
    waiting = []
    for container in (*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())):
        if reason := (container.get("state") or {}).get("waiting"):
            name = container.get("name", "")
            own = "" if name == names.STAGE_CONTAINER else name
            words = [(reason.get(part) or "")[:MAX_TEXT] for part in ("reason", "message")]
            waiting.append((own, (words[0], words[1])))
    # reasons that explain something come first
    waiting.sort(key=lambda item: (item[1][0] in ("PodInitializing", "ContainerCreating", ""), item[0]))
    return waiting[0] if waiting else ("", None)


def _find_failed(status: Mapping[str, Any]) -> str:
    """Describe the first container, other than the stage's, that ended with an error; empty if there is none.

    An init container that fails ends the pod before the stage's container starts.
    """
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        ended = (container.get("state") or {}).get("terminated") or {}
        name = container.get("name", "")
        if name != names.STAGE_CONTAINER and ended.get("exitCode"):
            detail = (ended.get("message") or "").strip() or ended.get("reason") or ""
            text = f"container {name} ended with exit code {ended['exitCode']}"
            return (f"{text}: {detail}" if detail else text)[:MAX_TEXT]
    return ""


def _is_node_not_ready(conditions: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a pod's node has stopped reporting.

    The node lifecycle controller then sets Ready to False and leaves ContainersReady as the kubelet wrote it.
    The kubelet itself never reports that pair for these pods, which have no readiness gates.
    """
    ready, containers = (conditions.get(kind, {}).get("status") for kind in ("Ready", "ContainersReady"))
    return ready == "False" and containers == "True"


def find_unexplained(snapshot: Snapshot, now: datetime) -> str:
    """Find the child Job or pod whose Events must be read; return its UID, or an empty text when there is none.

    A pod's own status reports images and scheduling. A quota refuses the pod to its child Job, and a missing
    Secret keeps the pod in ContainerCreating: these are reported by Events alone.
    """
    for child in snapshot.children:
        waited = (now - child.created_at).total_seconds()
        if child.ended or child.deleting or child.suspended or waited < EXPLAIN_AFTER_SECONDS:
            continue
        pods = [pod for pod in child.pods if pod.live]
        if not pods and not any(pod.phase == "Succeeded" for pod in child.pods):
            return child.uid
        starting = pods and pods[0].phase == "Pending" and not (pods[0].running or pods[0].held_open)
        if starting and not pods[0].unschedulable:
            return pods[0].uid
    return ""


def event_time(event: Mapping[str, Any]) -> str:
    """Return the time of an Event as the API server writes it; empty when it has none. Later times sort last."""
    return str(event.get("deprecatedLastTimestamp") or event.get("eventTime") or "")


def _is_about_secret(event: Mapping[str, Any]) -> bool:
    """Return whether an Event is about a Secret that cannot be mounted."""
    return event.get("reason") in MOUNT_FAILURES and "secret" in event.get("note", "").lower()


def _describe_secrets(newest: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> str:
    """Return the message of the newest Event about a Secret and those of the same mount, in a fixed order.

    The kubelet reports each missing Secret by an Event of its own.
    """
    messages, end = {newest["note"]}, parse_time(event_time(newest))
    for event in filter(_is_about_secret, events):
        time = parse_time(event_time(event))
        if end is not None and time is not None and end - time <= MOUNT_RETRY:
            messages.add(event["note"])
    return "; ".join(sorted(messages))


def observe_hint(events: Iterable[Mapping[str, Any]]) -> Hint | None:
    """Convert the newest Event that explains why a stage does not start; None when there is none."""
    newest_first = sorted(events, key=event_time, reverse=True)
    for event in newest_first:
        reason, message = event.get("reason", ""), event.get("note", "")
        time = parse_time(event_time(event))
        if _is_about_secret(event):
            secrets = _describe_secrets(event, newest_first)
            return Hint(Reason.SECRET_NOT_FOUND, f"{secrets} (it may be created soon)", time)
        if reason in MOUNT_FAILURES:
            return Hint(Reason.CONFIGURATION_INVALID, message, time)
        if reason == CREATE_FAILURE:
            return Hint(classify_refusal(message), _without_random_names(message), time)
    return None


def _without_random_names(message: str) -> str:
    """Remove the random part of pods' names from a message, because it differs in each retry of the child Job.

    The API server's validation writes `Pod "NAME"`, quotas write `pods "NAME"`, and admission webhooks use forms of their
    own. Of a long Job name, a pod's name has the first 58 characters, without a hyphen before the random part.
    """
    message = re.sub(r"(-(?:annotate|train)-[0-9a-f]{8}-)[a-z0-9]{5}\b", r"\1*", message)
    return re.sub(r'(?i)(pods? "[^"]{58})[a-z0-9]{5}(")', r"\1*\2", message)


def classify_refusal(message: str) -> Reason:
    """Return the reason for the API server's message about a child Job or a pod that it does not admit."""
    quota = "exceeded quota" in message or "failed quota" in message
    return Reason.QUOTA_EXCEEDED if quota else Reason.CONFIGURATION_INVALID


def parse_time(text: object) -> datetime | None:
    """Parse a time from the API server; None for anything else.

    A tenant may write any time into the status of a pod. Deadlines are computed from it and must stay within the range
    of a datetime.
    """
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return time if time is not None and time.tzinfo is not None and 1970 <= time.year <= 9000 else None
