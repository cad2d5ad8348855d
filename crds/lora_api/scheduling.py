"""Fields of a spec for resources, scheduling and the run policy."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from .base import Bool, Int, Model
from .fields import (
    LABEL,
    MAX_INT32,
    QUALIFIED,
    SUBDOMAIN,
    OptionalLabelKey,
    OptionalLabelValue,
    OptionalQuantity,
    OptionalSubdomain,
    Positive,
    Quantity,
    Seconds,
    is_label_key,
    server_rules,
)

MAX_LABEL_KEY = 317
"""Longest label key, in characters: a DNS name of 253, a slash, and a name of 63."""


class AnnotateResources(Model):
    """Resources of the annotation stage's pod."""

    cpu: Quantity = "500m"
    """CPU request, as a Kubernetes quantity."""
    memory: Quantity = "1Gi"
    """Memory request and limit, as a Kubernetes quantity. With annotation.masks Model, the pod gets 2Gi if this is less."""
    cpu_limit: OptionalQuantity = ""
    """CPU limit of the annotation container. Empty: the profile's, or none. A namespace with a quota on limits.cpu requires one."""
    ephemeral_storage: OptionalQuantity = ""
    """Disk space of the annotation container, as request and limit. Empty: the profile's, or no limit."""


def _extended_resource(name: str) -> str:
    if "kubernetes.io/" in name or name.startswith("requests.") or not is_label_key(name):
        raise ValueError("must be the name of an extended resource, for example nvidia.com/gpu")
    return name


class TrainResources(Model):
    """Resources of the training stage's pod."""

    gpus: Annotated[Int, Field(ge=0, le=16)] = 1
    """Number of GPUs. 0: train on the CPU, which suits only very small models."""
    gpu_resource: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
            json_schema_extra=server_rules(
                (
                    "!self.contains('kubernetes.io/') && !self.startsWith('requests.') && "
                    f"self.matches(r'^{SUBDOMAIN}/{QUALIFIED}$') && self.matches('/.{{1,63}}$')",
                    "must be the name of an extended resource, for example nvidia.com/gpu",
                )
            ),
        ),
        AfterValidator(_extended_resource),
    ] = "nvidia.com/gpu"
    """Extended resource that stands for a GPU on the cluster's nodes."""
    cpu: Quantity = "4"
    """CPU request, as a Kubernetes quantity."""
    memory: Quantity = "32Gi"
    """Memory request and limit, as a Kubernetes quantity."""
    cpu_limit: OptionalQuantity = ""
    """CPU limit of the training container. Empty: the profile's, or none. A namespace with a quota on limits.cpu requires one."""
    ephemeral_storage: OptionalQuantity = ""
    """Disk space of the training container, as request and limit; a downloaded base model, images and checkpoints count. Empty: the profile's, or no limit."""


class Resources(Model):
    """Resources of each stage's pod."""

    annotate: AnnotateResources = AnnotateResources()
    train: TrainResources = TrainResources()


class Toleration(Model):
    """A toleration, as in a pod's spec."""

    model_config = ConfigDict(
        json_schema_extra=server_rules(
            (
                "!has(self.key) || self.key == '' || self.key.matches('^([^/]{1,253}/)?[^/]{1,63}$')",
                "key must be a label key: a name of at most 63 characters, with an optional DNS prefix",
            ),
            (
                "has(self.key) && self.key != '' || has(self.operator) && self.operator == 'Exists'",
                "operator must be Exists when key is empty",
            ),
            (
                "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
                "value must be empty when operator is Exists",
            ),
            (
                "!has(self.tolerationSeconds) || has(self.effect) && self.effect == 'NoExecute'",
                "tolerationSeconds needs the effect NoExecute",
            ),
        )
    )

    key: OptionalLabelKey = ""
    """Key of the taint. Empty, with operator Exists: every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Exists: a taint of any value. Equal: a taint of this value."""
    value: OptionalLabelValue = ""
    """Value of the taint, for operator Equal."""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """Effect of the taint. Empty: every effect."""
    toleration_seconds: Seconds | None = None
    """Time for which a taint with the effect NoExecute is tolerated, in seconds. Unset: without limit."""

    @model_validator(mode="after")
    def _check_toleration(self) -> Self:
        # the API server would refuse these only in the training pod, after the captions have been paid for
        if self.key and not is_label_key(self.key):
            raise ValueError(
                "key must be a label key: a name of at most 63 characters, with an optional DNS prefix"
            )
        if not self.key and self.operator != "Exists":
            raise ValueError("operator must be Exists when key is empty")
        if self.operator == "Exists" and self.value:
            raise ValueError("value must be empty when operator is Exists")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("tolerationSeconds needs the effect NoExecute")
        return self


def _check_label_keys(labels: dict[str, str]) -> dict[str, str]:
    for key in labels:
        if not is_label_key(key):
            shown = key if len(key) <= 80 else f"{key[:80]}..."
            raise ValueError(f"{shown!r} is not a valid label key")
    return labels


class Scheduling(Model):
    """Scheduling of the training pod. The annotation pod needs no GPU and runs on any node."""

    queue_name: Annotated[str, Field(max_length=63, pattern=rf"^({LABEL}(\.{LABEL})*)?$")] = ""
    """Kueue LocalQueue for the job's pods. Empty: none."""
    priority_class_name: OptionalSubdomain = ""
    """PriorityClass of the training pod. Empty: the cluster's default."""
    runtime_class_name: OptionalSubdomain = ""
    """RuntimeClass of the training pod. Empty: the node's default."""
    node_selector: Annotated[
        dict[str, OptionalLabelValue],
        Field(
            max_length=16,
            json_schema_extra=server_rules(
                (
                    f"self.all(key, key.size() <= {MAX_LABEL_KEY})",
                    f"keys must have at most {MAX_LABEL_KEY} characters",
                ),
                (
                    f"self.all(key, key.matches(r'^({SUBDOMAIN}/)?{QUALIFIED}$') && key.matches('^([^/]{{1,253}}/)?[^/]{{1,63}}$'))",
                    "keys must be label keys: a name of at most 63 characters, with an optional DNS prefix",
                ),
            ),
        ),
        AfterValidator(_check_label_keys),
    ] = {}
    """Labels that a node must have to run the training pod."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = []
    """Taints that the training pod tolerates."""


class RunPolicy(Model):
    """Suspension, retries, deadlines and clean-up."""

    suspend: Bool = False
    """True: stop once the running stage has saved a checkpoint. False again: resume. Can be changed at any time."""
    backoff_limit: Annotated[Int, Field(ge=0, le=100)] = 2
    """Number of times that a failed stage is retried. Preemptions and lost nodes are not counted."""
    disruption_limit: Annotated[Int, Field(ge=1, le=1000)] = 10
    """Fail the job after this many disruptions (preemptions, evictions, lost nodes) in a row without progress in between."""
    retry: Annotated[Int, Field(ge=0, le=1000000)] = 0
    """Raise this number to start a Failed job again, with the same UID, captions and checkpoints. Can be changed at any time."""
    start_deadline_seconds: Positive | None = None
    """Fail the job if a stage's pod has not started after this many seconds. Unset: no deadline."""
    active_deadline_seconds: Positive | None = None
    """Fail the job this many seconds after its start, or after it was resumed. Unset: no deadline. Can be changed at any time."""
    child_ttl_seconds_after_finished: Annotated[Seconds, Field(alias="childTTLSecondsAfterFinished")] = 86400
    """Time for which finished pods are kept for their logs, in seconds."""
    ttl_seconds_after_finished: Annotated[
        Int | None, Field(ge=0, le=MAX_INT32, alias="ttlSecondsAfterFinished")
    ] = None
    """Delete this resource this many seconds after it has finished; its adapter is kept. Leave it unset under GitOps."""
