"""The children: restricted, complete, and deaf to what a job's author writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from lora_api.profile import HubModel, ModelCache, StoreModel
from lora_api.stages import AnnotateConfig, StageName, TrainConfig, stage_config_adapter
from lora_operator import names
from lora_operator.decide import StartAnnotation, StartTraining
from lora_operator.manifests import CLUSTER, Places, build_job, build_stage_config
from lora_operator.settings import Images
from tests.support.builders import PROFILE, UID, snapshot

IMAGES = Images(annotate="annotate:1", train="train:1", pull_secrets=("pull",))
STARTS = [StartAnnotation(1), StartTraining(2, "c" * 64, "sha256:" + "a" * 64)]


def job(start: StartAnnotation | StartTraining, **fields: Any) -> dict[str, Any]:
    case = snapshot(**fields)
    return build_job(case, build_stage_config(case, start, CLUSTER), IMAGES)


def pod_spec(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = body["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("start", STARTS)
def test_every_pod_meets_the_restricted_standard(start: StartAnnotation | StartTraining) -> None:
    pod = pod_spec(job(start))
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["restartPolicy"] == "Never"
    kinds = {next(k for k in v if k != "name") for v in pod["volumes"]}
    assert kinds <= {"downwardAPI", "secret", "configMap", "emptyDir", "persistentVolumeClaim"}
    assert all(volume["emptyDir"].get("sizeLimit") for volume in pod["volumes"] if "emptyDir" in volume)
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert writable <= {"/tmp", "/work", "/cache"}


@pytest.mark.parametrize("start", STARTS)
def test_the_stage_file_in_the_pod_configures_the_step(start: StartAnnotation | StartTraining) -> None:
    body = job(start)
    text = body["spec"]["template"]["metadata"]["annotations"][names.STAGE_CONFIG]
    config = stage_config_adapter.validate_json(text)
    assert isinstance(config, AnnotateConfig if isinstance(start, StartAnnotation) else TrainConfig)
    assert (config.uid, config.attempt) == (UID, start.attempt)
    (volume,) = [v for v in pod_spec(body)["volumes"] if v["name"] == "config"]
    (item,) = volume["downwardAPI"]["items"]
    assert item["path"] == "stage.json"
    assert names.STAGE_CONFIG in item["fieldRef"]["fieldPath"]
    assert body["metadata"]["labels"][names.ATTEMPT] == str(start.attempt)


def test_the_stages_get_what_a_recipe_leaves_open_and_what_it_sets() -> None:
    case = snapshot(spec={"training": {"recipe": "Auto", "rank": 8}})
    annotate, train = (
        stage_config_adapter.validate_json(
            build_stage_config(case, start, CLUSTER).model_dump_json(by_alias=True)
        )
        for start in (StartAnnotation(1), StartTraining(1, "c" * 64, "sha256:" + "a" * 64, 6))
    )
    assert case.spec is not None
    assert annotate.spec.with_recipe(6) == train.spec == case.spec.with_recipe(6)
    assert isinstance(train, TrainConfig)
    assert (train.spec.training.rank, train.spec.training.max_steps) == (8, 600)
    assert train.recipe is not None
    assert (train.recipe.kind, train.recipe.images) == ("Subject", 6)
    assert "maxSteps" in train.recipe.fields
    assert "rank" not in train.recipe.fields


def test_each_credential_goes_only_where_it_is_needed() -> None:
    def secrets(body: dict[str, Any]) -> set[str]:
        return {v["secret"]["secretName"] for v in pod_spec(body)["volumes"] if "secret" in v}

    assert secrets(job(STARTS[0])) == {"lora-store", "lora-llm"}
    assert secrets(job(STARTS[0], spec={"annotation": {"mode": "Template"}})) == {"lora-store"}
    assert secrets(job(STARTS[1])) == {"lora-store"}


def test_a_model_inside_the_pod_needs_torch_and_no_key() -> None:
    assert PROFILE.llm is not None
    llm = PROFILE.llm.model_copy(update={"provider": "transformers"})
    pod = pod_spec(job(STARTS[0], profile=PROFILE.model_copy(update={"llm": llm})))
    assert pod["containers"][0]["image"] == "train:1"
    assert "llm" not in [volume["name"] for volume in pod["volumes"]]


SEGMENTATION = {
    "hub": HubModel(source="hub", repo="CIDAS/clipseg-rd64-refined", size="700Mi"),
    "store": StoreModel(source="store", key="models/clipseg/"),
}
MASKS = {"annotation": {"mode": "Template", "masks": "Model"}}


def test_masks_by_a_model_are_made_in_a_pod_that_can_run_it() -> None:
    profile = PROFILE.model_copy(update={"segmentation": SEGMENTATION["hub"]})
    config = build_stage_config(snapshot(spec=MASKS, profile=profile), STARTS[0], CLUSTER)
    assert isinstance(config, AnnotateConfig)
    assert (config.segmentation, config.cache_dir, config.prefetched) == (
        SEGMENTATION["hub"],
        "/cache",
        False,
    )
    pod = pod_spec(job(STARTS[0], spec=MASKS, profile=profile))
    (container,) = pod["containers"]
    assert container["image"] == "train:1"
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "cache"]
    assert mount == {"name": "cache", "mountPath": "/cache"}
    assert container["resources"]["limits"] == {"memory": "2Gi"}
    assert container["resources"]["requests"]["memory"] == "2Gi"
    assert container["resources"]["requests"]["ephemeral-storage"] == "700Mi"
    more = {**MASKS, "resources": {"annotate": {"memory": "3000Mi"}}}
    (container,) = pod_spec(job(STARTS[0], spec=more, profile=profile))["containers"]
    assert container["resources"]["limits"] == {"memory": "3000Mi"}

    # A job without them gets the same pod as under a profile without a model.
    assert job(STARTS[0], profile=profile) == job(STARTS[0])
    (container,) = pod_spec(job(STARTS[0], profile=profile))["containers"]
    assert (container["image"], container["resources"]["limits"]) == ("annotate:1", {"memory": "1Gi"})


@pytest.mark.parametrize(
    ("source", "claim", "is_offline"), [("hub", "", False), ("hub", "models", True), ("store", "", True)]
)
def test_a_segmentation_model_is_fetched_only_where_it_is_not_cached(
    source: str, claim: str, is_offline: bool
) -> None:
    profile = PROFILE.model_copy(
        update={
            "segmentation": SEGMENTATION[source],
            "model_cache": ModelCache(persistent_volume_claim=claim),
        }
    )
    pod = pod_spec(job(STARTS[0], spec=MASKS, profile=profile))
    (container,) = pod["containers"]
    assert ({"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]) is is_offline
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "cache"]
    if claim:
        assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    else:
        assert "emptyDir" in volume


def test_the_failure_policy_charges_only_the_stages_own_faults() -> None:
    body = job(STARTS[1])["spec"]
    ignored, interrupted, permanent = body["podFailurePolicy"]["rules"]
    assert ignored["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert (interrupted["action"], interrupted["onExitCodes"]["values"]) == ("Ignore", [75])
    assert (permanent["action"], permanent["onExitCodes"]["values"]) == ("FailJob", [64, 65, 66, 77, 78])
    assert body["backoffLimit"] == 2


def test_gpus_scheduling_and_queue() -> None:
    spec = {
        "resources": {"train": {"gpus": 2, "gpuResource": "amd.com/gpu"}},
        "scheduling": {
            "queueName": "gpus",
            "priorityClassName": "low",
            "nodeSelector": {"pool": "spot"},
            "tolerations": [{"key": "spot", "operator": "Exists"}],
        },
    }
    body = job(STARTS[1], spec=spec)
    pod = pod_spec(body)
    assert pod["containers"][0]["resources"]["limits"]["amd.com/gpu"] == "2"
    assert pod["priorityClassName"] == "low"
    assert pod["tolerations"] == [{"key": "spot", "operator": "Exists"}]
    assert body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    annotate = pod_spec(job(STARTS[0], spec=spec))
    assert "nodeSelector" not in annotate
    assert "amd.com/gpu" not in annotate["containers"][0]["resources"]["limits"]
    cpu = {"resources": {"train": {"gpus": 0}}, "training": {"mixedPrecision": "fp32"}}
    none = pod_spec(job(STARTS[1], spec=cpu))
    assert set(none["containers"][0]["resources"]["limits"]) == {"memory"}


HOSTILE = {
    "dataset": {"prefix": "$(touch HOSTILE)"},
    "annotation": {"instructions": "HOSTILE; rm -rf /", "mode": "LLM"},
    "training": {"preview": {"prompts": ["HOSTILE `id`"]}},
}


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("start", STARTS)
def test_what_an_author_writes_reaches_nothing_but_the_stage_file(
    start: StartAnnotation | StartTraining,
) -> None:
    body = job(start, spec=HOSTILE)
    assert "HOSTILE" in body["spec"]["template"]["metadata"]["annotations"][names.STAGE_CONFIG]
    del body["spec"]["template"]["metadata"]["annotations"][names.STAGE_CONFIG]
    assert [text for text in strings(body) if "HOSTILE" in text] == []


def test_a_private_authority_is_mounted_and_named() -> None:
    store = PROFILE.store.model_copy(update={"ca_config_map": "corp-ca"})
    case = {"profile": PROFILE.model_copy(update={"store": store})}
    body = job(STARTS[1], **case)
    assert next(v for v in pod_spec(body)["volumes"] if v["name"] == "ca")["configMap"]["name"] == "corp-ca"
    text = body["spec"]["template"]["metadata"]["annotations"][names.STAGE_CONFIG]
    assert json.loads(text)["store"]["caFile"] == "/var/run/lora/ca/ca.crt"


def test_an_llm_has_its_own_authority_proxy_and_times_and_needs_no_secret() -> None:
    assert PROFILE.llm is not None
    own = {
        "ca_config_map": "gateway-ca",
        "proxy": "http://proxy:3128",
        "secret_name": "",
        "timeout_seconds": 7,
    }
    case = {"profile": PROFILE.model_copy(update={"llm": PROFILE.llm.model_copy(update=own)})}
    body = job(STARTS[0], **case)
    volumes = {volume["name"]: volume for volume in pod_spec(body)["volumes"]}
    assert volumes["llm-ca"]["configMap"]["name"] == "gateway-ca"
    assert "llm" not in volumes
    llm = json.loads(body["spec"]["template"]["metadata"]["annotations"][names.STAGE_CONFIG])["llm"]
    assert (llm["caFile"], llm["credentialsDir"]) == ("/var/run/lora/llm-ca/ca.crt", "")
    assert (llm["proxy"], llm["timeoutSeconds"]) == ("http://proxy:3128", 7)
    mounts = [mount["mountPath"] for mount in pod_spec(body)["containers"][0]["volumeMounts"]]
    assert "/var/run/lora/llm-ca" in mounts
    assert "/var/run/lora/llm" not in mounts


@pytest.mark.parametrize(
    "name", ["a", "x" * 63, "y" * 253, "with.dots." + "z" * 60, "a" * 45 + "-" * 10 + "b"]
)
def test_children_have_names_that_kubernetes_takes(name: str) -> None:
    for stage in StageName:
        child = names.child_name(name, UID, stage, 1)
        assert len(child) <= 63
        assert child.replace("-", "").isalnum()
        assert child[0].isalnum()
        assert "--" not in child or "--" in name
        assert child != names.child_name(name, UID, stage, 2)
        assert child != names.child_name(name, "other", stage, 1)
    assert replace(snapshot(), name=name).keys.root == f"studio/{name}/{UID}/"


def test_a_model_cache_is_read_only_and_makes_no_request_to_the_hub() -> None:
    cached = PROFILE.model_copy(update={"model_cache": ModelCache(persistent_volume_claim="models")})
    case = snapshot(profile=cached)
    config = build_stage_config(case, STARTS[1], CLUSTER)
    pod = pod_spec(build_job(case, config, IMAGES))
    (container,) = pod["containers"]
    assert isinstance(config, TrainConfig)
    assert config.prefetched
    (volume,) = [v for v in pod["volumes"] if v["name"] == "cache"]
    assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "cache"]
    assert mount == {"name": "cache", "mountPath": config.cache_dir, "readOnly": True}
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert environment["HF_HUB_OFFLINE"] == "1"
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert any(environment["HF_HOME"].startswith(f"{path}/") for path in writable)

    here = build_stage_config(case, STARTS[1], Places())
    assert isinstance(here, TrainConfig)
    assert not here.prefetched


@pytest.mark.parametrize("start", STARTS)
def test_without_one_libraries_may_download_to_where_they_may_write(
    start: StartAnnotation | StartTraining,
) -> None:
    (container,) = pod_spec(job(start))["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert any(environment["HF_HOME"].startswith(f"{path}/") for path in writable)


def test_only_a_pod_that_must_download_a_model_may_ask_the_hub() -> None:
    assert PROFILE.llm is not None
    hub = {"sdxl-base-1.0": HubModel(source="hub", repo="a/b")}
    local = PROFILE.llm.model_copy(update={"provider": "transformers"})
    stored, on_hub, inside = (
        PROFILE.model_copy(update=update) for update in ({}, {"models": hub}, {"models": hub, "llm": local})
    )
    annotate, train = STARTS
    for start, profile, offline in [
        (annotate, stored, True),
        (annotate, on_hub, True),
        (annotate, inside, False),
        (train, stored, True),
        (train, on_hub, False),
    ]:
        (container,) = pod_spec(job(start, profile=profile))["containers"]
        assert ({"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]) is offline


def test_several_gpus_have_memory_to_share() -> None:
    def shared(gpus: int) -> list[dict[str, Any]]:
        pod = pod_spec(job(STARTS[1], spec={"resources": {"train": {"gpus": gpus}}}))
        mounts = pod["containers"][0]["volumeMounts"]
        return [mount for mount in mounts if mount["mountPath"] == "/dev/shm"]

    assert shared(1) == []
    assert shared(2) == [{"name": "shm", "mountPath": "/dev/shm"}]


def test_a_fine_tuned_unet_has_time_to_save_its_checkpoint() -> None:
    def grace(start: StartAnnotation | StartTraining, **training: str) -> int:
        body = job(start, spec={"training": training})
        seconds: int = pod_spec(body)["terminationGracePeriodSeconds"]
        return seconds

    annotation, training = STARTS
    extract = {"method": "DreamBoothExtract"}
    assert (grace(annotation), grace(training)) == (120, 120)
    assert (grace(annotation, **extract), grace(training, **extract)) == (120, 900)
