"""The batch/v1 Job of a step, to the restricted Pod Security Standard.

Nothing that a job's author writes reaches a command, an image, a volume, an environment variable or a
security context: those are all made here from settings and the profile.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from lora_api import API_VERSION, KIND
from lora_api.exits import PERMANENT, ExitCode
from lora_api.job import JobSpec
from lora_api.profile import Profile
from lora_api.steps import AnnotateStep, StepName, TrainStep

from .. import names
from ..settings import Images
from ..snapshot import Snapshot
from .step import CLUSTER, admitted, command

USER = 65532
CONTAINER = "step"
GRACE_SECONDS = 120
"""For a step to be finished and its checkpoint uploaded after SIGTERM."""
KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"


def build_job(snapshot: Snapshot, config: AnnotateStep | TrainStep, images: Images) -> dict[str, Any]:
    """The Job that runs a step, its configuration inside it.

    The step's file travels as an annotation that the kubelet projects into the pod, so a step and its
    configuration are created by one request, or not at all (docs/adr/0001).
    """
    spec, profile = admitted(snapshot)
    step, attempt = config.step, config.attempt
    labels = {
        names.MANAGED_BY: names.OPERATOR,
        "app.kubernetes.io/name": "lora-trainer",
        "app.kubernetes.io/component": str(step),
        names.JOB_UID: snapshot.uid,
        names.STEP: str(step),
        names.ATTEMPT: str(attempt),
    }
    queue = {KUEUE_QUEUE: spec.scheduling.queue_name} if spec.scheduling.queue_name else {}
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": snapshot.name,
        "uid": snapshot.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": names.child_name(snapshot.name, snapshot.uid, step, attempt),
            "namespace": snapshot.namespace,
            "labels": labels | queue,
            "annotations": {names.JOB_NAME: snapshot.name},
            "ownerReferences": [owner],
        },
        "spec": {
            "backoffLimit": spec.run_policy.backoff_limit,
            "ttlSecondsAfterFinished": spec.run_policy.child_ttl_seconds_after_finished,
            "podFailurePolicy": _pod_failure_policy(),
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        names.JOB_NAME: snapshot.name,
                        names.STEP_CONFIG: config.model_dump_json(by_alias=True),
                    },
                },
                "spec": _pod(spec, profile, config, images),
            },
        },
    }


def _pod_failure_policy() -> dict[str, Any]:
    def on_exit(action: str, codes: list[int]) -> dict[str, Any]:
        return {
            "action": action,
            "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": codes},
        }

    disrupted = {"type": "DisruptionTarget", "status": "True"}
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [disrupted]},
            on_exit("Ignore", [int(ExitCode.INTERRUPTED)]),
            on_exit("FailJob", sorted(int(code) for code in PERMANENT)),
        ]
    }


def _pod(spec: JobSpec, profile: Profile, config: AnnotateStep | TrainStep, images: Images) -> dict[str, Any]:
    training = config.step == StepName.TRAIN
    volumes, mounts = _volumes(profile, config)
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": images.train if training or _has_local_model(config) else images.annotate,
                "imagePullPolicy": images.pull_policy,
                "command": ["python", *command(config.step, CLUSTER.config)],
                "env": [
                    {"name": "HOME", "value": "/tmp"},  # noqa: S108 - an emptyDir of the pod's own
                    {"name": "HF_HOME", "value": f"{CLUSTER.work}/huggingface"},
                    *([] if _may_ask_the_hub(config) else [{"name": "HF_HUB_OFFLINE", "value": "1"}]),
                    {"name": "PYTHONUNBUFFERED", "value": "1"},
                ],
                "ports": [{"name": "progress", "containerPort": CLUSTER.progress_port}],
                "resources": _resources(spec, training),
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
    if images.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in images.pull_secrets]
    if training:
        pod |= _scheduling(spec)
    return pod


def _has_local_model(config: AnnotateStep | TrainStep) -> bool:
    """Whether captions come from a model inside the pod, which needs torch and no key."""
    return (
        isinstance(config, AnnotateStep) and config.llm is not None and config.llm.provider == "transformers"
    )


def _may_ask_the_hub(config: AnnotateStep | TrainStep) -> bool:
    """Whether a model must be downloaded from there by this pod."""
    if isinstance(config, TrainStep):
        return config.base_model.source == "hub" and not config.prefetched
    return _has_local_model(config)


def _resources(spec: JobSpec, training: bool) -> dict[str, Any]:
    if not training:
        asked = spec.resources.annotate
        return {
            "requests": {"cpu": asked.cpu, "memory": asked.memory},
            "limits": {"memory": asked.memory},
        }
    wanted = spec.resources.train
    limits: dict[str, Any] = {"memory": wanted.memory}
    if wanted.gpus:
        limits[wanted.gpu_resource] = str(wanted.gpus)
    return {"requests": {"cpu": wanted.cpu, "memory": wanted.memory}, "limits": limits}


def _scheduling(spec: JobSpec) -> dict[str, Any]:
    wanted = spec.scheduling
    fields: dict[str, Any] = {
        "priorityClassName": wanted.priority_class_name,
        "runtimeClassName": wanted.runtime_class_name,
        "nodeSelector": wanted.node_selector,
        "tolerations": [
            {name: value for name, value in toleration.to_wire().items() if value not in ("", None)}
            for toleration in wanted.tolerations
        ],
    }
    return {name: value for name, value in fields.items() if value}


def _volumes(
    profile: Profile, config: AnnotateStep | TrainStep
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and their mounts: each credential only where its step needs it."""
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []

    def add(name: str, path: str, source: dict[str, Any], writable: bool = False) -> None:
        volumes.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": path, **({} if writable else {"readOnly": True})})

    def secret(name: str, keys: list[str]) -> dict[str, Any]:
        items = [{"key": key, "path": key} for key in keys]
        return {"secret": {"secretName": name, "defaultMode": 0o440, "items": items}}

    config_path = PurePosixPath(CLUSTER.config)
    field = {"fieldPath": f"metadata.annotations['{names.STEP_CONFIG}']"}
    add(
        "config",
        str(config_path.parent),
        {"downwardAPI": {"items": [{"path": config_path.name, "fieldRef": field}]}},
    )
    add("store", CLUSTER.store_secret, secret(profile.store.secret_name, ["accessKey", "secretKey"]))
    if profile.store.ca_config_map:
        ca = {
            "configMap": {"name": profile.store.ca_config_map, "items": [{"key": "ca.crt", "path": "ca.crt"}]}
        }
        add("ca", str(PurePosixPath(CLUSTER.store_ca).parent), ca)
    asks_a_service = isinstance(config, AnnotateStep) and config.llm is not None
    if asks_a_service and profile.llm is not None and not _has_local_model(config):
        add("llm", CLUSTER.llm_secret, secret(profile.llm.secret_name, ["apiKey"]))
    add("tmp", "/tmp", {"emptyDir": {}}, writable=True)  # noqa: S108 - an emptyDir of the pod's own
    add("work", CLUSTER.work, {"emptyDir": {}}, writable=True)
    if isinstance(config, TrainStep):
        claim = profile.model_cache.persistent_volume_claim
        if config.prefetched:
            add("cache", CLUSTER.cache, {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
        else:
            add("cache", CLUSTER.cache, {"emptyDir": {}}, writable=True)
        if config.spec.resources.train.gpus > 1:
            # what NCCL shares between processes; a container's own /dev/shm has 64 MB
            add("shm", "/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}, writable=True)  # noqa: S108
    return volumes, mounts
