"""The snapshot of one job, which is the whole input of a decision apart from the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from lora_api.job import JobSpec
from lora_api.keys import JobKeys
from lora_api.profile import Profile
from lora_api.reasons import Reason
from lora_api.stages import StageName
from lora_api.status import CaptionsStatus, JobStatus, Phase, Progress, TrainingStatus, WebhookStatus

Key = tuple[str, str]
"""Namespace and name of a job."""


@dataclass(frozen=True)
class Pod:
    """A pod of a stage's child Job, or a process in local mode. Exit code, times and message are the stage container's."""

    name: str
    uid: str
    phase: str
    """Kubernetes' value: Pending, Running, Succeeded, Failed or Unknown."""
    node: str = ""
    ip: str = ""
    deleting: bool = False
    waiting: tuple[str, str] | None = None
    """Why a container does not start: Kubernetes' reason and message."""
    waiting_container: str = ""
    """The container that waits, if it is not the stage's."""
    unschedulable: str = ""
    """The scheduler's message if no node fits the pod; else empty."""
    disrupted: str = ""
    """The reason of the condition DisruptionTarget, if the cluster ended the pod; else empty."""
    disruption_message: str = ""
    status_reason: str = ""
    """The pod's own reason, for example Evicted."""
    status_message: str = ""
    node_not_ready: bool = False
    """Whether the pod's node has stopped reporting to the control plane."""
    failed_container: str = ""
    """What ended with an error beside the stage's container; empty if nothing did."""
    exit_code: int | None = None
    oom_killed: bool = False
    message: str = ""
    """The termination message."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    kind: str = "pod"
    """What messages call it: `pod`, or `process` in local mode."""

    @property
    def live(self) -> bool:
        return self.phase not in ("Succeeded", "Failed")

    @property
    def running(self) -> bool:
        """Whether the stage runs. A pod is Pending while another container cannot start, even if the stage's own runs."""
        started = self.phase == "Running" or (
            self.phase == "Pending" and self.started_at is not None and self.exit_code is None
        )
        return started and not self.deleting

    @property
    def held_open(self) -> bool:
        """Whether the stage's container has ended, but the pod has not, because of another container."""
        return self.phase in ("Pending", "Running") and self.exit_code is not None


@dataclass(frozen=True)
class Child:
    """A child Job of a stage."""

    name: str
    uid: str
    stage: StageName
    attempt: int
    created_at: datetime
    deleting: bool = False
    finalizers: tuple[str, ...] = ()
    """Finalizers of other programs. While it is deleted, they keep the child Job after its pods are gone."""
    suspended: bool = False
    """Whether a queue such as Kueue has suspended it. This operator never suspends a child Job."""
    complete: bool = False
    failed: str = ""
    """The reason of the Job's Failed condition."""
    failed_message: str = ""
    pods: tuple[Pod, ...] = ()
    recorded: bool = True
    """Whether the status has its UID. The result of a Job that is not recorded is ignored, but the Job can be stopped."""

    @property
    def ended(self) -> bool:
        return self.complete or bool(self.failed)

    @property
    def active(self) -> bool:
        """Whether it has not ended and is not being deleted."""
        return not self.ended and not self.deleting

    @property
    def is_held(self) -> bool:
        """Whether a finalizer of another program keeps it, although it was deleted and its pods have ended."""
        return self.deleting and bool(self.finalizers) and not any(pod.live for pod in self.pods)


@dataclass(frozen=True)
class Hint:
    """Why a stage does not start, where only Events say so: a quota, a missing Secret."""

    reason: Reason
    message: str
    time: datetime | None = None
    """Time of the Event."""


@dataclass(frozen=True)
class Refusal:
    """Why a child Job could not be created."""

    reason: Reason
    message: str
    final: bool
    """Whether it would be refused every time."""


@dataclass(frozen=True)
class Snapshot:
    """A job, its children and its profile.

    `spec` is None when the resource does not fit the model; `spec_error` then says why. `status_error` says
    why the stored status cannot be read; `status` is then empty.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    created_at: datetime
    spec: JobSpec | None
    spec_error: str = ""
    status: JobStatus = JobStatus()
    status_error: str = ""
    profile: Profile | None = None
    children: tuple[Child, ...] = ()
    orphaned_pods: Mapping[StageName, str] = field(default_factory=dict)
    """Names of pods, one for a stage, that still run although their child Job has been deleted, or no longer owns them."""
    deleting: bool = False
    """Whether the resource has a deletionTimestamp."""
    capacity: str = ""
    """Why the profile's limit does not let this job start now; empty when it may start."""
    progress: Progress | None = None
    """The last report of the current stage's pod; None before the first."""
    delivery: WebhookStatus | None = None
    """Result of the webhook that announces the end of this job; None while it is not known."""
    hint: Hint | None = None
    refusal: Refusal | None = None
    """Why the API server refused the child Job of the previous decision, or that of the last try of a job that is not
    admitted now; None if it was not refused."""
    pod_kind: str = "pod"
    """`Pod.kind` of the stages."""

    @property
    def retry_requested(self) -> bool:
        """Whether a failed job is to be started again."""
        failed = self.status.phase == Phase.FAILED and self.spec is not None
        return failed and self.spec is not None and self.spec.run_policy.retry > self.status.retries

    @property
    def keys(self) -> JobKeys:
        return JobKeys(self.namespace, self.name, self.uid)

    def child(self, stage: StageName) -> Child | None:
        """Return the newest recorded child Job of a stage; None if there is none."""
        recorded = (child for child in self.children if child.stage == stage and child.recorded)
        return max(recorded, key=lambda child: child.attempt, default=None)


def stage_status(status: JobStatus, stage: StageName) -> CaptionsStatus | TrainingStatus | None:
    """Return the part of a status that describes a stage; None before its first attempt."""
    return status.captions if stage == StageName.ANNOTATE else status.training


def update_stage(status: JobStatus, stage: StageName, **changes: object) -> JobStatus:
    """Return a status with other values in the part that describes a stage, or the same status if it has none."""
    known = stage_status(status, stage)
    name = "captions" if stage == StageName.ANNOTATE else "training"
    return status.model_copy(update={name: known.model_copy(update=changes)}) if known else status
