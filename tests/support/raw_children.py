"""Child Jobs and pods as the API server returns them, with everything by which the operator identifies them."""

from __future__ import annotations

from typing import Any

from lora_api import API_VERSION, KIND
from lora_api.stages import StageName
from lora_operator import names
from lora_operator.ownership import POD_JOB_NAME


def _metadata(namespace: str, resource: str, uid: str, stage: StageName, attempt: int) -> dict[str, Any]:
    labels = {
        names.MANAGED_BY: names.OPERATOR,
        names.JOB_UID: uid,
        names.STAGE: str(stage),
        names.ATTEMPT: str(attempt),
    }
    return {
        "namespace": namespace,
        "labels": labels,
        "annotations": {names.OWNER_NAME: resource},
        "resourceVersion": "1",
        "creationTimestamp": "2026-03-01T12:00:00Z",
    }


def raw_job(
    namespace: str = "studio",
    resource: str = "statue",
    uid: str = "u",
    *,
    stage: StageName = StageName.TRAIN,
    attempt: int = 1,
    **fields: Any,
) -> dict[str, Any]:
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": resource, "uid": uid, "controller": True}
    metadata = _metadata(namespace, resource, uid, stage, attempt) | {
        "name": names.child_name(resource, uid, stage, attempt),
        "uid": f"job-{stage}-{attempt}",
        "ownerReferences": [owner],
    }
    return {"metadata": metadata, "spec": {}, "status": {}} | fields


def raw_pod(
    namespace: str = "studio",
    resource: str = "statue",
    uid: str = "u",
    *,
    stage: StageName = StageName.TRAIN,
    attempt: int = 1,
    name: str = "p",
    **status: Any,
) -> dict[str, Any]:
    job = names.child_name(resource, uid, stage, attempt)
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": job,
        "uid": f"job-{stage}-{attempt}",
        "controller": True,
    }
    metadata = _metadata(namespace, resource, uid, stage, attempt)
    metadata["labels"][POD_JOB_NAME] = job
    metadata |= {"name": name, "uid": f"uid-{name}", "ownerReferences": [owner]}
    return {"metadata": metadata, "spec": {"nodeName": "gpu-1"}, "status": status}
