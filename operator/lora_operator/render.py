"""`lora-operator render job.yaml`: the child Jobs that a job would get, for review and debugging."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from lora_api.job import InvalidResourceError, Recipe, parse_job_document

from .decide import StartAnnotation, StartTraining
from .decide.admission import find_problem
from .manifests import CLUSTER, build_job, build_stage_config
from .settings import Images, read_profiles
from .snapshot import Snapshot

UNKNOWN = "0" * 64
"""A placeholder for a hash or a UID that only a running job has."""


def render(job: Path, profiles: Path, images: Images) -> str:
    """Write both child Jobs as YAML documents, as the operator would create them for the first attempt.

    Raises:
        InvalidResourceError: when the job is wrong or its profile does not allow it.
        SettingsError: when the profiles file is wrong.
    """
    try:
        metadata, spec = parse_job_document(yaml.safe_load(job.read_text()))
    except OSError as error:
        raise InvalidResourceError(f"cannot read {job}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise InvalidResourceError(f"{job} is not valid YAML: {error}") from None
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
    count = None if spec.training.recipe is Recipe.NONE else spec.dataset.max_images
    actions = (StartAnnotation(1), StartTraining(1, UNKNOWN, f"sha256:{UNKNOWN}", count))
    children = [
        build_job(snapshot, build_stage_config(snapshot, action, CLUSTER), images) for action in actions
    ]
    return "---\n".join(_yaml(child) for child in children)


def _yaml(value: dict[str, Any]) -> str:
    # copied through JSON, because PyYAML writes anchors for objects that are shared
    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, width=110)
