"""Rules by which batch Jobs and pods are children of a job.

Labels are not sufficient, because anybody can set them. A batch Job is a child if its controller is the resource, in
the resource's own namespace, and if it has the name that the operator gives to that stage and attempt. A pod is a
child if its controller is such a batch Job. Both are looked up by (namespace, UID), because a UID alone can be copied
into another namespace.

A pod without any owner belongs to no child Job, so nothing that it reports is used. It is known all the same: while it
runs, its stage must not start again. `kubectl delete job --cascade=orphan` leaves such pods.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_api import GROUP, KIND
from lora_api.stages import StageName
from lora_api.status import MAX_ATTEMPT

from . import names

POD_JOB_NAME = "batch.kubernetes.io/job-name"

Owner = tuple[str, str]
"""Namespace and UID of a resource."""


class NotOurChildError(ValueError):
    """An object that has the operator's labels but is not a child of a job."""


@dataclass(frozen=True)
class Lineage:
    """The resource, stage and attempt that a child belongs to."""

    owner: Owner
    resource_name: str
    stage: StageName
    attempt: int
    job_name: str
    """The child Job's name."""
    job_uid: str
    """The child Job's UID; empty for a pod without an owner."""


def job_lineage(body: Mapping[str, Any]) -> Lineage:
    """Determine the lineage of a batch Job.

    Raises:
        NotOurChildError: when the operator did not create it for a job in its namespace.
    """
    metadata = _mapping(body, "metadata")
    controller = find_controller(metadata, GROUP, KIND)
    if _label(metadata, names.JOB_UID) != controller["uid"]:
        raise NotOurChildError("its label names another job than its controller")
    return _lineage(
        metadata, controller["uid"], controller["name"], _text(metadata, "name"), _text(metadata, "uid")
    )


def pod_lineage(body: Mapping[str, Any]) -> Lineage:
    """Determine the lineage of a pod.

    The lineage is valid only if the child Job that the pod names as its controller exists; the caller checks that.

    Raises:
        NotOurChildError: when it has an owner, and its controller cannot be a child Job of a job.
    """
    metadata = _mapping(body, "metadata")
    if metadata.get("ownerReferences"):
        controller = find_controller(metadata, "batch", "Job")
    else:
        controller = {"name": _label(metadata, POD_JOB_NAME), "uid": ""}
    if _label(metadata, POD_JOB_NAME) != controller["name"]:
        raise NotOurChildError("its label names another Job than its controller")
    annotations = metadata.get("annotations")
    name = annotations.get(names.OWNER_NAME) if isinstance(annotations, Mapping) else None
    if not isinstance(name, str):
        raise NotOurChildError(f"it has no annotation {names.OWNER_NAME}")
    return _lineage(metadata, _label(metadata, names.JOB_UID), name, controller["name"], controller["uid"])


def _lineage(metadata: Mapping[str, Any], uid: str, resource: str, job_name: str, job_uid: str) -> Lineage:
    """Check the labels of a child against the name of its child Job."""
    attempt = _label(metadata, names.ATTEMPT)
    if not re.fullmatch("[1-9][0-9]{0,5}", attempt) or int(attempt) > MAX_ATTEMPT:
        raise NotOurChildError(f"its attempt is not a number from 1 to {MAX_ATTEMPT}")
    try:
        stage = StageName(_label(metadata, names.STAGE))
    except ValueError:
        raise NotOurChildError("its stage does not exist") from None
    if job_name != names.child_name(resource, uid, stage, int(attempt)):
        raise NotOurChildError("its Job does not have the name that the operator gives it")
    return Lineage((_text(metadata, "namespace"), uid), resource, stage, int(attempt), job_name, job_uid)


def find_controller(metadata: Mapping[str, Any], group: str, kind: str) -> Mapping[str, str]:
    """Return the owner reference of an object's controller.

    The version in it is that of the API when the object was created, so it is not compared.

    Raises:
        NotOurChildError: when the controller is not of this group and kind.
    """
    for owner in metadata.get("ownerReferences") or ():
        if (
            isinstance(owner, Mapping)
            and owner.get("controller") is True
            and str(owner.get("apiVersion")).partition("/")[0] == group
            and owner.get("kind") == kind
            and isinstance(owner.get("name"), str)
            and isinstance(owner.get("uid"), str)
        ):
            return owner
    raise NotOurChildError(f"its controller is not a {kind}")


def _label(metadata: Mapping[str, Any], name: str) -> str:
    labels = metadata.get("labels")
    value = labels.get(name) if isinstance(labels, Mapping) else None
    if not isinstance(value, str):
        raise NotOurChildError(f"it has no label {name}")
    return value


def _mapping(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if not isinstance(value, Mapping):
        raise NotOurChildError(f"it has no {name}")
    return value


def _text(metadata: Mapping[str, Any], name: str) -> str:
    value = metadata.get(name)
    if not isinstance(value, str):
        raise NotOurChildError(f"it has no metadata.{name}")
    return value
