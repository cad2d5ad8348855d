"""Names and labels of children. Deterministic, so that creating one twice is refused by the API server."""

from __future__ import annotations

import hashlib

from lora_api import GROUP
from lora_api.steps import StepName

MANAGED_BY = "app.kubernetes.io/managed-by"
OPERATOR = "lora-training-operator"
JOB_UID = f"{GROUP}/job-uid"
STEP = f"{GROUP}/step"
ATTEMPT = f"{GROUP}/attempt"
JOB_NAME = f"{GROUP}/job-name"
"""An annotation: the name can be longer than a label may be."""
STEP_CONFIG = f"{GROUP}/step-config"

MAX_NAME = 63


def child_name(job: str, uid: str, step: StepName, attempt: int) -> str:
    """At most 63 characters, whatever the job is called: `marble-statue-train-3f9c01ab`."""
    digest = hashlib.sha256(f"{uid}/{step}/{attempt}".encode()).hexdigest()[:8]
    tail = f"-{step}-{digest}"
    return job.replace(".", "-")[: MAX_NAME - len(tail)].rstrip("-") + tail
