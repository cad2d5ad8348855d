"""The batch/v1 Job of a stage, which meets the restricted Pod Security Standard.

Commands, images, volumes, environment variables and security contexts are built from the settings and the profile.
None of them contains text from a job's spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from lora_api import API_VERSION, KIND
from lora_api.exits import PERMANENT, ExitCode
from lora_api.job import JobSpec, Method
from lora_api.profile import Profile
from lora_api.stages import AnnotateConfig, StageName, TrainConfig

from .. import names
from ..settings import Images
from ..snapshot import Snapshot, stage_status
from .pods import build_resources, build_scheduling, stage_pods
from .stage import ALLOCATOR, CLUSTER, command, spec_and_profile

USER = 65532
"""User and group ID of the stage's process."""
GRACE_SECONDS = 120
"""Time to save and upload a checkpoint after SIGTERM."""
LONG_GRACE_SECONDS = 900
"""The same for a fine-tuned UNet, whose checkpoint has about 12 GB."""
TMP_SIZE = "4Gi"
WORK_SIZE = "64Gi"
"""Size limits of a pod's emptyDirs, far above what a stage writes. The kubelet evicts a pod that exceeds them, before it
fills its node."""
KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
API_DEFAULTS = {"dnsPolicy", "schedulerName", "terminationMessagePolicy", "creationTimestamp", "priority"}
"""Fields of a pod template that the API server adds."""
SCHEDULING = {"nodeSelector", "tolerations", "priorityClassName", "runtimeClassName", "imagePullSecrets"}
"""Fields of a pod that `runs_the_same` does not compare: they say where a pod runs, not what."""


def build_job(snapshot: Snapshot, config: AnnotateConfig | TrainConfig, images: Images) -> dict[str, Any]:
    """Build the child Job that runs a stage, with its configuration.

    The stage's configuration file is an annotation that the kubelet projects into the pod, so both are created
    by one request or not at all (docs/adr/0001).
    """
    spec, profile = spec_and_profile(snapshot)
    stage = config.stage
    pods = stage_pods(profile, stage)
    labels = _build_labels(snapshot, stage, config.attempt)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": build_metadata(snapshot, stage, config.attempt),
        "spec": {
            "backoffLimit": max(0, spec.run_policy.backoff_limit - _failures(snapshot, stage)),
            "ttlSecondsAfterFinished": spec.run_policy.child_ttl_seconds_after_finished,
            "podFailurePolicy": _pod_failure_policy(),
            "template": {
                "metadata": {
                    "labels": pods.labels | labels,
                    "annotations": pods.annotations
                    | {
                        names.OWNER_NAME: snapshot.name,
                        names.STAGE_CONFIG: config.model_dump_json(by_alias=True),
                    },
                },
                "spec": _build_pod(spec, profile, config, images),
            },
        },
    }


def build_metadata(snapshot: Snapshot, stage: StageName, attempt: int) -> dict[str, Any]:
    """Build the metadata of a stage's child Job, by which the operator finds it again."""
    queue = snapshot.spec.scheduling.queue_name if snapshot.spec else ""
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": snapshot.name,
        "uid": snapshot.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {
        "name": names.child_name(snapshot.name, snapshot.uid, stage, attempt),
        "namespace": snapshot.namespace,
        "labels": _build_labels(snapshot, stage, attempt) | ({KUEUE_QUEUE: queue} if queue else {}),
        "annotations": {names.OWNER_NAME: snapshot.name},
        "ownerReferences": [owner],
    }


def _build_labels(snapshot: Snapshot, stage: StageName, attempt: int) -> dict[str, str]:
    """Build the labels that a child Job and its pods share."""
    return {
        names.MANAGED_BY: names.OPERATOR,
        "app.kubernetes.io/name": "lora-trainer",
        "app.kubernetes.io/component": str(stage),
        names.JOB_UID: snapshot.uid,
        names.STAGE: str(stage),
        names.ATTEMPT: str(attempt),
    }


def _failures(snapshot: Snapshot, stage: StageName) -> int:
    """Count the failures of earlier attempts, which count towards the same limit as those within a child Job."""
    status = stage_status(snapshot.status, stage)
    return status.failures if status else 0


def _pod_failure_policy() -> dict[str, Any]:
    """Build the rules for failed pods. The first rule that matches applies.

    Disrupted and interrupted pods are replaced and not charged to backoffLimit. An exit code in `PERMANENT` fails the
    Job at once. All other failures are retried within backoffLimit.
    """

    def on_exit(action: str, codes: list[int]) -> dict[str, Any]:
        return {
            "action": action,
            "onExitCodes": {"containerName": names.STAGE_CONTAINER, "operator": "In", "values": codes},
        }

    disrupted = {"type": "DisruptionTarget", "status": "True"}
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [disrupted]},
            on_exit("Ignore", [int(ExitCode.INTERRUPTED)]),
            on_exit("FailJob", sorted(int(code) for code in PERMANENT)),
        ]
    }


def _grace_seconds(spec: JobSpec, stage: StageName) -> int:
    """Return the seconds between SIGTERM and SIGKILL, in which training finishes its step and saves a checkpoint."""
    tunes_unet = stage == StageName.TRAIN and spec.training.method == Method.DREAMBOOTH_EXTRACT
    return LONG_GRACE_SECONDS if tunes_unet else GRACE_SECONDS


def _build_pod(
    spec: JobSpec, profile: Profile, config: AnnotateConfig | TrainConfig, images: Images
) -> dict[str, Any]:
    training = config.stage == StageName.TRAIN
    volumes, mounts = _build_volumes(profile, config)
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _grace_seconds(spec, config.stage),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": names.STAGE_CONTAINER,
                "image": images.train if _needs_torch(config) else images.annotate,
                "imagePullPolicy": images.pull_policy,
                "command": ["python", *command(config.stage, CLUSTER.config)],
                "env": [
                    {"name": "HOME", "value": "/tmp"},  # noqa: S108 - an emptyDir of the pod's own
                    {"name": "HF_HOME", "value": f"{CLUSTER.work}/huggingface"},
                    *([] if _needs_hub(config) else [{"name": "HF_HUB_OFFLINE", "value": "1"}]),
                    {"name": "PYTHONUNBUFFERED", "value": "1"},
                    *({"name": name, "value": value} for name, value in ALLOCATOR.items() if training),
                ],
                "ports": [{"name": "progress", "containerPort": CLUSTER.progress_port}],
                "resources": build_resources(spec, profile, config),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "terminationMessagePath": CLUSTER.termination_log,
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    return pod | build_scheduling(spec, profile, config.stage, images)


def _has_local_model(config: AnnotateConfig | TrainConfig) -> bool:
    """Whether captions come from a model inside the pod, which needs torch and no key."""
    return (
        isinstance(config, AnnotateConfig)
        and config.llm is not None
        and config.llm.provider == "transformers"
    )


def _needs_torch(config: AnnotateConfig | TrainConfig) -> bool:
    """Whether a stage runs a model itself, which only the train image can."""
    if isinstance(config, TrainConfig):
        return True
    return _has_local_model(config) or config.segmentation is not None


def _needs_hub(config: AnnotateConfig | TrainConfig) -> bool:
    """Whether the pod must download a model from the Hugging Face hub."""
    if isinstance(config, TrainConfig):
        models = [config.base_model]
        if config.scoring:
            models += [config.scoring.likeness, config.scoring.fidelity]
        return any(model.source == "hub" for model in models) and not config.prefetched
    segmentation = config.segmentation
    downloads = segmentation is not None and segmentation.source == "hub" and not config.prefetched
    return downloads or _has_local_model(config)


def _build_volumes(
    profile: Profile, config: AnnotateConfig | TrainConfig
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Build the volumes and their mounts. A credential is mounted only in the stage that needs it."""
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []

    def add(name: str, path: str, source: dict[str, Any], writable: bool = False) -> None:
        volumes.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": path, **({} if writable else {"readOnly": True})})

    def secret(name: str, keys: list[str]) -> dict[str, Any]:
        items = [{"key": key, "path": key} for key in keys]
        return {"secret": {"secretName": name, "defaultMode": 0o440, "items": items}}

    def authority(name: str) -> dict[str, Any]:
        return {"configMap": {"name": name, "items": [{"key": "ca.crt", "path": "ca.crt"}]}}

    config_path = PurePosixPath(CLUSTER.config)
    field = {"fieldPath": f"metadata.annotations['{names.STAGE_CONFIG}']"}
    add(
        "config",
        str(config_path.parent),
        {"downwardAPI": {"items": [{"path": config_path.name, "fieldRef": field}]}},
    )
    add("store", CLUSTER.store_secret, secret(profile.store.secret_name, ["accessKey", "secretKey"]))
    if profile.store.ca_config_map:
        add("ca", str(PurePosixPath(CLUSTER.store_ca).parent), authority(profile.store.ca_config_map))
    needs_service = isinstance(config, AnnotateConfig) and config.llm is not None
    if needs_service and profile.llm is not None and not _has_local_model(config):
        if profile.llm.secret_name:
            add("llm", CLUSTER.llm_secret, secret(profile.llm.secret_name, ["apiKey"]))
        if profile.llm.ca_config_map:
            add("llm-ca", str(PurePosixPath(CLUSTER.llm_ca).parent), authority(profile.llm.ca_config_map))
    add("tmp", "/tmp", {"emptyDir": {"sizeLimit": TMP_SIZE}}, writable=True)  # noqa: S108 - an emptyDir of the pod's own
    add("work", CLUSTER.work, {"emptyDir": {"sizeLimit": WORK_SIZE}}, writable=True)
    if config.prefetched:
        claim = profile.model_cache.persistent_volume_claim
        add("cache", CLUSTER.cache, {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
    elif config.cache_dir:
        add("cache", CLUSTER.cache, {"emptyDir": {"sizeLimit": WORK_SIZE}}, writable=True)
    if isinstance(config, TrainConfig) and config.spec.resources.train.gpus > 1:
        # what NCCL shares between processes; a container's own /dev/shm has 64 MB
        add("shm", "/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}, writable=True)  # noqa: S108
    return volumes, mounts


def runs_the_same(existing: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
    """Return whether the pods of an existing Job run the same as those of the Job `body`, apart from resources and scheduling.

    Resources are not compared, because the API server writes quantities in another form. A Job whose template was
    changed by a webhook is different.
    """
    template, expected = existing["spec"]["template"], body["spec"]["template"]
    spec, expected_spec = template["spec"], expected["spec"]
    if not set(spec) <= set(expected_spec) | API_DEFAULTS | SCHEDULING:
        return False
    stage_config = template["metadata"].get("annotations", {}).get(names.STAGE_CONFIG)
    return (
        stage_config == expected["metadata"]["annotations"][names.STAGE_CONFIG]
        and _equals(spec["containers"], expected_spec["containers"])
        and _equals(spec.get("volumes", []), expected_spec["volumes"])
    )


def _equals(actual: Any, expected: Any) -> bool:
    """Return whether two values are equal but for resources, defaults of the API server and the modes of volumes."""
    if isinstance(expected, Mapping):
        return (
            isinstance(actual, Mapping)
            and set(actual) - set(expected) <= API_DEFAULTS | {"defaultMode", "apiVersion", "protocol"}
            and all(
                name in actual and (name == "resources" or _equals(actual[name], value))
                for name, value in expected.items()
            )
        )
    if isinstance(expected, list):
        return (
            isinstance(actual, list)
            and len(actual) == len(expected)
            and all(_equals(*pair) for pair in zip(actual, expected, strict=True))
        )
    return bool(actual == expected)
