"""`lora-operator render job.yaml`: the children that a job would get, for review and for debugging."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from lora_api.job import InvalidResourceError, parse_job_document

from .decide import StartAnnotation, StartTraining
from .decide.admission import find_problem
from .manifests import CLUSTER, build_job, build_step
from .settings import Images, read_profiles
from .snapshot import Snapshot

UNKNOWN = "0" * 64
"""Stands for a hash or a UID that only a running job has."""


def render(job: Path, profiles: Path, images: Images) -> str:
    """Both Jobs as YAML documents, as the operator would create them for the first attempt.

    Raises:
        InvalidResourceError: when the job is wrong or its profile does not accept it.
        SettingsError: when the profiles file is wrong.
    """
    try:
        metadata, spec = parse_job_document(yaml.safe_load(job.read_text()))
    except OSError as error:
        raise InvalidResourceError(f"cannot read {job}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise InvalidResourceError(f"{job} is no YAML: {error}") from None
    namespace = metadata.get("namespace", "default")
    profile = read_profiles(profiles).get(spec.profile)
    if problem := find_problem(spec, namespace, profile):
        raise InvalidResourceError(problem.message)
    snapshot = Snapshot(
        namespace=namespace,
        name=metadata["name"],
        uid=UNKNOWN[:8],
        generation=1,
        created_at=datetime.now(UTC),
        spec=spec,
        profile=profile,
    )
    starts = (StartAnnotation(1), StartTraining(1, UNKNOWN, f"sha256:{UNKNOWN}"))
    children = [build_job(snapshot, build_step(snapshot, start, CLUSTER), images) for start in starts]
    return "---\n".join(_yaml(child) for child in children)


def _yaml(value: dict[str, Any]) -> str:
    # by way of JSON, which leaves the dumper no shared objects to write as anchors
    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, width=110)
