"""What is known of one job at one instant: the whole input of a decision."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from lora_api.job import JobSpec
from lora_api.keys import JobKeys
from lora_api.profile import Profile
from lora_api.reasons import Reason
from lora_api.status import JobStatus, Progress
from lora_api.steps import StepName


@dataclass(frozen=True)
class Pod:
    """One pod of a step's Job, or one process of it in local mode."""

    name: str
    uid: str
    phase: str
    """Kubernetes' word: Pending, Running, Succeeded, Failed or Unknown."""
    node: str = ""
    ip: str = ""
    deleting: bool = False
    waiting: tuple[str, str] | None = None
    """Why the container does not run: Kubernetes' reason and message."""
    unschedulable: str = ""
    disrupted: str = ""
    """The reason of DisruptionTarget, where the cluster and not the step ended the pod."""
    exit_code: int | None = None
    oom_killed: bool = False
    message: str = ""
    """The termination message."""
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def live(self) -> bool:
        return self.phase not in ("Succeeded", "Failed")

    @property
    def running(self) -> bool:
        return self.phase == "Running" and not self.deleting


@dataclass(frozen=True)
class Child:
    """One Job of a step."""

    name: str
    uid: str
    step: StepName
    attempt: int
    created_at: datetime
    deleting: bool = False
    suspended: bool = False
    """By Kueue, say: this operator never suspends a Job."""
    complete: bool = False
    failed: str = ""
    """The reason of the Job's Failed condition."""
    failed_message: str = ""
    pods: tuple[Pod, ...] = ()

    @property
    def ended(self) -> bool:
        return self.complete or bool(self.failed)

    @property
    def active(self) -> bool:
        """It has not ended, and nobody has deleted it."""
        return not self.ended and not self.deleting


@dataclass(frozen=True)
class Hint:
    """Why a step does not start, as only Events tell: a quota, a missing Secret."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Refusal:
    """Why a child could not be created."""

    reason: Reason
    message: str
    final: bool
    """It would be refused again and again."""


@dataclass(frozen=True)
class Snapshot:
    """One job, its children and its profile.

    `spec` is None when the resource does not fit the model (then `spec_error` says why); `status_error`
    says that the stored status cannot be read (`status` is then empty).
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
    leftovers: frozenset[StepName] = frozenset()
    """Steps of which a pod still lives although its Job is gone."""
    progress: Progress | None = None
    hint: Hint | None = None
    refusal: Refusal | None = None
    """Of the child that was to be created just now."""

    @property
    def keys(self) -> JobKeys:
        return JobKeys(self.namespace, self.name, self.uid)

    def child(self, step: StepName) -> Child | None:
        """The newest Job of a step."""
        return max((c for c in self.children if c.step == step), key=lambda c: c.attempt, default=None)
