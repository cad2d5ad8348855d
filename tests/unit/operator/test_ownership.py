"""Forged children: what a tenant may create in any namespace, and what the operator makes of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from lora_api.stages import StageName
from lora_api.status import PreviewStatus, TrainingStatus
from lora_operator import names
from lora_operator.decide import DeleteChildJob, StartTraining, decide
from lora_operator.indexer import Cache
from lora_operator.manifests import CLUSTER, build_job, build_stage_config, runs_the_same
from lora_operator.observe import Resource, observe_job, observe_stage_pod, read_snapshot
from lora_operator.ownership import POD_JOB_NAME, NotOurChildError, job_lineage, pod_lineage
from lora_operator.settings import Images
from tests.support.builders import (
    ADAPTER,
    CAPTIONED,
    CAPTIONS_SHA,
    HASH,
    KEYS,
    NOW,
    PROFILE,
    REUSED,
    TRAINED,
    UID,
    annotated,
    child,
    condition,
    pod,
    snapshot,
    training,
    wire_spec,
)
from tests.support.raw_children import raw_job, raw_pod

Forge = Callable[[dict[str, Any]], object]


def owner(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = body["metadata"]["ownerReferences"][0]
    return found


FORGERIES: list[tuple[str, Forge]] = [
    ("an owner that is no controller", lambda body: owner(body).update(controller=False)),
    ("another kind", lambda body: owner(body).update(kind="ConfigMap", apiVersion="v1")),
    ("another group", lambda body: owner(body).update(apiVersion="evil.io/v1")),
    ("another name", lambda body: owner(body).update(name="other")),
    ("no labels", lambda body: body["metadata"].pop("labels")),
    ("a label of another job", lambda body: body["metadata"]["labels"].update({names.JOB_UID: "victim"})),
    ("an unknown stage", lambda body: body["metadata"]["labels"].update({names.STAGE: "dance"})),
    ("another attempt", lambda body: body["metadata"]["labels"].update({names.ATTEMPT: "99"})),
    ("a huge attempt", lambda body: body["metadata"]["labels"].update({names.ATTEMPT: "1" + "0" * 30})),
    ("a negative attempt", lambda body: body["metadata"]["labels"].update({names.ATTEMPT: "-1"})),
    ("Unicode digits", lambda body: body["metadata"]["labels"].update({names.ATTEMPT: "١"})),
    ("owner references of another type", lambda body: body["metadata"].update(ownerReferences="x")),
]


@pytest.mark.parametrize(("what", "forge"), FORGERIES, ids=[what for what, _ in FORGERIES])
def test_a_forged_child_is_refused(what: str, forge: Forge) -> None:
    for make, read in ((raw_job, job_lineage), (raw_pod, pod_lineage)):
        body = make()
        assert read(body).attempt == 1
        forge(body)
        with pytest.raises(NotOurChildError):
            read(body)


def test_a_job_without_an_owner_is_refused() -> None:
    body = raw_job()
    del body["metadata"]["ownerReferences"]
    with pytest.raises(NotOurChildError):
        job_lineage(body)


def test_a_pod_that_has_lost_its_job_is_waited_for_and_not_believed() -> None:
    """`kubectl delete job --cascade=orphan` takes the owner off the pods, which run on."""
    believed = raw_pod(phase="Running", name="own")
    stray = raw_pod(phase="Running", name="stray")
    del stray["metadata"]["ownerReferences"]
    found = seen(1, pods=(believed, stray))
    assert [[each.name for each in job.pods] for job in found.children] == [["own"]]
    assert set(found.orphaned_pods) == {StageName.TRAIN}
    stray["status"] = {"phase": "Succeeded"}
    assert not seen(1, pods=(stray,)).orphaned_pods


def test_a_child_of_the_same_uid_in_another_namespace_is_another_jobs() -> None:
    cache = Cache()
    resource = {"metadata": {"namespace": "studio", "name": "statue", "uid": "u", "resourceVersion": "1"}}
    cache.resources.update(resource | {"spec": wire_spec()})
    assert cache.children.update(raw_job("attacker"))
    assert cache.pods.update(raw_pod("attacker", phase="Running", podIP="10.0.0.1"))
    assert cache.children.by_owner(("studio", "u")) == []
    assert cache.pods.by_owner(("studio", "u")) == []
    assert cache.running_pods() == []


def test_only_pods_of_existing_child_jobs_are_polled() -> None:
    cache = Cache()
    resource = {"metadata": {"namespace": "studio", "name": "statue", "uid": "u", "resourceVersion": "1"}}
    cache.resources.update(resource | {"spec": wire_spec()})
    cache.pods.update(raw_pod(phase="Running", podIP="10.0.0.1"))
    assert cache.running_pods() == []
    cache.children.update(raw_job())
    assert [item.pod.name for item in cache.running_pods()] == ["p"]


def seen(*attempts: int, pods: tuple[dict[str, Any], ...] = (), status: dict[str, Any] | None = None) -> Any:
    body = {
        "metadata": {
            "namespace": "studio",
            "name": "statue",
            "uid": "u",
            "generation": 1,
            "creationTimestamp": "2026-03-01T12:00:00Z",
            "resourceVersion": "5",
        },
        "spec": wire_spec(),
        "status": status or annotated(training=TrainingStatus(attempt=1)).to_wire(),
    }
    jobs = [observe_job(raw_job(attempt=attempt)) for attempt in attempts]
    return read_snapshot(Resource.of(body), jobs, [observe_stage_pod(each) for each in pods], {})


def test_an_attempt_that_the_operator_cannot_have_started_is_not_seen() -> None:
    assert [each.attempt for each in seen(1, 2, 99).children] == [1, 2]


def test_every_attempt_of_a_job_with_an_invalid_status_can_be_stopped() -> None:
    found = seen(1, 2, 99, status={"startTime": "0000-12-31T00:00:00Z"})
    decision = decide(found, datetime.now(UTC))
    assert condition(decision, "Succeeded") == ("False", "StatusInvalid")
    assert len([action for action in decision.actions if isinstance(action, DeleteChildJob)]) == 3


def test_a_pod_of_an_earlier_job_of_the_same_name_is_not_its_pod() -> None:
    stray = raw_pod(phase="Succeeded")
    owner(stray)["uid"] = "another"
    found = seen(1, pods=(raw_pod(phase="Succeeded", name="own"), stray))
    assert [[each.name for each in job.pods] for job in found.children] == [["own"]]


def beside(folder: str) -> dict[str, str]:
    """An adapter, its manifest and its report, all in one folder."""
    return {
        "uri": f"s3://loras/{folder}adapter.safetensors",
        "manifest_key": f"{folder}manifest.json",
        "report_key": f"{folder}report.html",
    }


def test_a_preview_outside_the_jobs_prefix_is_refused() -> None:
    for key, status in ((KEYS.attempt(1) + "preview-000-0.png", "True"), ("studio/other/uid/x.png", "False")):
        preview = PreviewStatus(step=1, prompt="a", key=key)
        result = TRAINED.model_copy(update={"previews": [preview]})
        job = child(StageName.TRAIN, pod("Succeeded", result), complete=True)
        found = condition(decide(snapshot(status=training(), children=(job,)), NOW), "Succeeded")
        assert found is not None
        assert found[0] == status


def test_a_pod_whose_label_names_another_job_is_refused() -> None:
    body = raw_pod()
    body["metadata"]["labels"][POD_JOB_NAME] = "other"
    with pytest.raises(NotOurChildError):
        pod_lineage(body)


def test_a_result_outside_the_jobs_prefix_is_refused() -> None:
    foreign = [
        {"uri": f"s3://attacker/{ADAPTER.location[1]}"},
        {"uri": "s3://loras/studio/other/uid/attempt-1/backdoored.safetensors"},
        {"manifest_key": "studio/other/uid/attempt-1/manifest.json"},
        {"manifest_key": f"studio/statue/{UID}/captions/manifest.json"},
        {"report_key": "studio/other/uid/attempt-1/report.html"},
        beside("studio/other/uid/attempt-1/"),
        beside(f"studio/statue/{UID}/captions/"),
        beside(f"studio/statue/{UID}2/attempt-1/"),
        beside(""),
    ]
    for change in foreign:
        result = TRAINED.model_copy(update={"adapter": ADAPTER.model_copy(update=change)})
        job = child(StageName.TRAIN, pod("Succeeded", result), complete=True)
        decision = decide(snapshot(status=training(), children=(job,)), NOW)
        assert condition(decision, "Succeeded") == ("False", "ResultRefused"), change
        assert decision.status.adapter is None


def test_a_result_whose_key_leaves_its_folder_cannot_be_read() -> None:
    change = {"uri": f"s3://loras/studio/statue/{UID}/../other/x.safetensors"}
    result = TRAINED.model_copy(update={"adapter": ADAPTER.model_copy(update=change)})
    job = child(StageName.TRAIN, pod("Succeeded", result), complete=True)
    decision = decide(snapshot(status=training(), children=(job,)), NOW)
    assert condition(decision, "Succeeded") == ("Unknown", "Queued")
    assert decision.status.adapter is None
    assert decision.status.training is not None
    assert decision.status.training.failures == 1


def test_captions_outside_the_jobs_prefix_are_refused() -> None:
    assert CAPTIONED.captions is not None
    captions = CAPTIONED.captions.model_copy(update={"key": "studio/other/uid/captions/metadata.jsonl"})
    result = CAPTIONED.model_copy(update={"captions": captions})
    job = child(StageName.ANNOTATE, pod("Succeeded", result), complete=True)
    decision = decide(snapshot(children=(job,)), NOW)
    assert condition(decision, "Succeeded") == ("False", "ResultRefused")


@pytest.mark.parametrize(
    ("namespace", "status"), [("studio", "True"), ("other", "False"), ("studio2", "False")]
)
def test_an_adapter_is_reused_within_its_namespace_only(namespace: str, status: str) -> None:
    folder = f"{namespace}/earlier/uid/attempt-1/"
    adapter = ADAPTER.model_copy(
        update={"uri": f"s3://loras/{folder}adapter.safetensors", "manifest_key": f"{folder}manifest.json"}
    )
    job = child(
        StageName.ANNOTATE, pod("Succeeded", REUSED.model_copy(update={"adapter": adapter})), complete=True
    )
    decision = decide(snapshot(children=(job,), profile=PROFILE), NOW)
    found = condition(decision, "Succeeded")
    assert found is not None
    assert found[0] == status


def recorded(uid: str, *bodies: dict[str, Any]) -> list[tuple[int, bool]]:
    """Attempts of the training's child Jobs, and whether each is recorded, where the status names attempt 2."""
    status = annotated(training=TrainingStatus(attempt=2, job_uid=uid)).to_wire()
    metadata = {"namespace": "studio", "name": "statue", "uid": "u", "generation": 1, "resourceVersion": "5"}
    body = {"metadata": metadata, "spec": wire_spec(), "status": status}
    found = read_snapshot(Resource.of(body), [observe_job(each) for each in bodies], [], {})
    return sorted((each.attempt, each.recorded) for each in found.children)


def test_only_the_job_whose_uid_is_in_the_status_is_believed() -> None:
    jobs = [raw_job(attempt=attempt) for attempt in (1, 2, 3)]
    own = jobs[1]["metadata"]["uid"]
    assert recorded(own, *jobs) == [(1, True), (2, True), (3, False)]
    assert recorded("another", *jobs) == [(1, True), (2, False), (3, False)]
    assert recorded("", *jobs) == [(1, True), (2, True), (3, False)], "a status of an earlier version"


def test_a_result_of_a_job_that_is_not_recorded_changes_nothing_but_can_be_stopped() -> None:
    forged = child(StageName.TRAIN, pod("Succeeded", TRAINED), recorded=False)
    decision = decide(snapshot(status=training(), children=(forged,)), NOW)
    assert decision.status.adapter is None
    assert decision.actions == (StartTraining(1, CAPTIONS_SHA, HASH),)
    suspended = snapshot(
        spec=wire_spec(runPolicy={"suspend": True}),
        status=training(),
        children=(replace(forged, pods=(pod("Running"),)),),
    )
    assert decide(suspended, NOW).actions == (DeleteChildJob(forged.name, forged.uid),)


SAME: list[tuple[str, Forge, bool]] = [
    ("as it was created", lambda pod: None, True),
    (
        "with defaults",
        lambda pod: pod.update(dnsPolicy="ClusterFirst", schedulerName="default-scheduler"),
        True,
    ),
    ("another image", lambda pod: pod["containers"][0].update(image="evil"), False),
    ("another command", lambda pod: pod["containers"][0].update(command=["sh"]), False),
    ("another variable", lambda pod: pod["containers"][0]["env"].append({"name": "A", "value": "b"}), False),
    ("variables of a Secret", lambda pod: pod["containers"][0].update(envFrom=[{"secretRef": {}}]), False),
    ("a container more", lambda pod: pod["containers"].append({"name": "evil", "image": "evil"}), False),
    ("an init container", lambda pod: pod.update(initContainers=[{"name": "evil"}]), False),
    ("another volume", lambda pod: pod["volumes"][0].update({"emptyDir": {}}), False),
    ("the network of the node", lambda pod: pod.update(hostNetwork=True), False),
    ("an account", lambda pod: pod.update(serviceAccountName="admin"), False),
]


@pytest.mark.parametrize(("what", "change", "same"), SAME, ids=[what for what, *_ in SAME])
def test_an_existing_job_is_taken_over_only_if_it_runs_the_same(what: str, change: Forge, same: bool) -> None:
    found = snapshot(status=annotated())
    body = build_job(
        found, build_stage_config(found, StartTraining(1, CAPTIONS_SHA, HASH), CLUSTER), Images("a", "t")
    )
    existing = copy.deepcopy(body)
    change(existing["spec"]["template"]["spec"])
    assert runs_the_same(existing, body) is same


def test_an_existing_job_with_another_configuration_is_not_taken_over() -> None:
    found = snapshot(status=annotated())
    bodies = [
        build_job(found, build_stage_config(found, StartTraining(1, sha, HASH), CLUSTER), Images("a", "t"))
        for sha in (CAPTIONS_SHA, "f" * 64)
    ]
    assert not runs_the_same(*bodies)


def test_a_final_phase_without_its_condition_is_not_a_status_of_the_operators() -> None:
    metadata = {"namespace": "studio", "name": "statue", "uid": "u", "generation": 1, "resourceVersion": "5"}
    body = {"metadata": metadata, "spec": wire_spec(), "status": {"phase": "Succeeded"}}
    decision = decide(read_snapshot(Resource.of(body), [], [], {"default": PROFILE}), NOW)
    assert condition(decision, "Succeeded") == ("False", "StatusInvalid")


def test_a_forged_child_takes_no_place_of_the_profiles_limit() -> None:
    """A tenant with many waiting jobs could otherwise mark them all as running, and keep other tenants waiting."""
    metadata = {"namespace": "studio", "name": "statue", "uid": "u", "generation": 1, "resourceVersion": "5"}

    def runs(status: dict[str, Any]) -> bool:
        return Resource.of({"metadata": metadata, "spec": wire_spec(), "status": status}).runs([job])

    job = observe_job(raw_job())
    assert not runs({})
    assert not runs({"training": {"jobName": job.name, "jobUID": "another"}})
    assert runs({"training": {"jobName": "", "jobUID": job.uid}}), "it was given up, but its pod still runs"
    assert not runs({"phase": "Succeeded", "training": {"jobName": job.name, "jobUID": job.uid}})
    assert runs({"training": {"jobName": job.name, "jobUID": job.uid}})
    assert runs({"training": {"jobName": job.name}}), "a status of an earlier version"
    ended = replace(job, complete=True)
    body = {"metadata": metadata, "status": {"training": {"jobName": job.name, "jobUID": job.uid}}}
    assert not Resource.of(body).runs([ended])


def test_long_texts_of_pods_and_jobs_are_not_kept() -> None:
    """A user who may write the status of a pod could otherwise fill the operator's memory."""
    long = "x" * 1_500_000
    state = {"terminated": {"exitCode": 1, "message": long}, "waiting": {"reason": "x", "message": long}}
    conditions = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": long},
        {"type": "DisruptionTarget", "status": "True", "reason": "x", "message": long},
    ]
    body = raw_pod(
        message=long,
        conditions=conditions,
        containerStatuses=[{"name": names.STAGE_CONTAINER, "state": state}],
    )
    failed_job = raw_job(
        status={"conditions": [{"type": "Failed", "status": "True", "reason": "x", "message": long}]}
    )
    assert len(repr(observe_stage_pod(body))) < 40_000
    assert len(repr(observe_job(failed_job))) < 10_000
