"""Names and labels of child Jobs. Names are deterministic, so the API server refuses to create one twice."""

from __future__ import annotations

import hashlib

from lora_api import GROUP
from lora_api.stages import StageName

MANAGED_BY = "app.kubernetes.io/managed-by"
OPERATOR = "lora-training-operator"
JOB_UID = f"{GROUP}/job-uid"
STAGE = f"{GROUP}/stage"
ATTEMPT = f"{GROUP}/attempt"
OWNER_NAME = f"{GROUP}/job-name"
"""Annotation with the resource's name. It is not a label, because a name can be longer than the value of a label."""
STAGE_CONFIG = f"{GROUP}/stage-config"
"""Annotation of a pod with the stage's configuration file."""

STAGE_CONTAINER = "stage"
"""The container that runs a stage. Others in its pod were injected."""

MAX_NAME = 63


def child_name(job: str, uid: str, stage: StageName, attempt: int) -> str:
    """Return the name of a child Job, for example `marble-statue-train-3f9c01ab`.

    It has at most 63 characters, because Kubernetes copies it to a label of the pods.
    """
    digest = hashlib.sha256(f"{uid}/{stage}/{attempt}".encode()).hexdigest()[:8]
    tail = f"-{stage}-{digest}"
    return job.replace(".", "-")[: MAX_NAME - len(tail)].rstrip("-") + tail
