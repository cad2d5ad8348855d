"""The part of a pod that a profile can set: resources, labels, scheduling and pull secrets.

A profile sets values for all of its jobs. A job's own value wins where the profile allows one, and never
replaces what the profile requires.
"""

from __future__ import annotations

from typing import Any

from lora_api.job import JobSpec
from lora_api.profile import Profile, StagePods
from lora_api.scheduling import Toleration
from lora_api.stages import AnnotateConfig, StageName, TrainConfig

from ..quantities import parse_quantity
from ..settings import Images

SEGMENTATION_MEMORY = "2Gi"
"""Smallest memory of an annotation pod with a segmentation model. A CLIPSeg model of 150 million weights, torch and an
image took 1 GB."""


def stage_pods(profile: Profile, stage: StageName) -> StagePods:
    """Return the profile's settings for the pods of a stage."""
    return profile.pods.train if stage == StageName.TRAIN else profile.pods.annotate


def build_resources(spec: JobSpec, profile: Profile, config: AnnotateConfig | TrainConfig) -> dict[str, Any]:
    """Build the requests and limits of the stage's container.

    Args:
        spec: the job.
        profile: its profile.
        config: the stage's configuration.
    """
    stage = config.stage
    requested = spec.resources.train if stage == StageName.TRAIN else spec.resources.annotate
    memory = requested.memory
    if isinstance(config, AnnotateConfig) and config.segmentation:
        memory = max(memory, SEGMENTATION_MEMORY, key=parse_quantity)
    pods = stage_pods(profile, stage)
    requests: dict[str, Any] = {"cpu": requested.cpu, "memory": memory}
    limits: dict[str, Any] = {"memory": memory}
    if cpu_limit := requested.cpu_limit or pods.cpu_limit:
        limits["cpu"] = cpu_limit
        # Kubernetes refuses a request above the limit, and a profile's limit may be below a job's request
        requests["cpu"] = min(requested.cpu, cpu_limit, key=parse_quantity)
    if storage := requested.ephemeral_storage or pods.ephemeral_storage:
        requests["ephemeral-storage"] = limits["ephemeral-storage"] = storage
    elif size := _download_size(spec, profile, config):
        # without a request the scheduler may choose a node that has no room for the model
        requests["ephemeral-storage"] = size
    # Kubernetes takes the limit of an extended resource as its request too
    if stage == StageName.TRAIN and spec.resources.train.gpus:
        limits[spec.resources.train.gpu_resource] = str(spec.resources.train.gpus)
    return {"requests": requests, "limits": limits}


def _download_size(spec: JobSpec, profile: Profile, config: AnnotateConfig | TrainConfig) -> str:
    """Return the disk space of the model that the pod downloads; empty if it downloads none or its size is not known."""
    if config.prefetched:
        return ""
    model = profile.models[spec.base_model] if isinstance(config, TrainConfig) else config.segmentation
    return model.size if model else ""


def build_scheduling(spec: JobSpec, profile: Profile, stage: StageName, images: Images) -> dict[str, Any]:
    """Build the fields of a pod that choose its node, and the Secrets that its images are pulled with."""
    pods = stage_pods(profile, stage)
    # the annotation stage needs no GPU, so spec.scheduling applies to the training pod only
    requested = spec.scheduling if stage == StageName.TRAIN else None
    # a dict, unlike a set, removes duplicates and keeps the order
    secrets = dict.fromkeys((*images.pull_secrets, *pods.image_pull_secrets))
    fields: dict[str, Any] = {
        "priorityClassName": requested.priority_class_name if requested else "",
        "runtimeClassName": requested.runtime_class_name if requested else "",
        "nodeSelector": {**(requested.node_selector if requested else {}), **pods.node_selector},
        "tolerations": [
            _toleration(toleration)
            for toleration in (*pods.tolerations, *(requested.tolerations if requested else ()))
        ],
        "imagePullSecrets": [{"name": name} for name in secrets],
    }
    return {name: value for name, value in fields.items() if value}


def _toleration(toleration: Toleration) -> dict[str, Any]:
    return {name: value for name, value in toleration.to_wire().items() if value not in ("", None)}
