"""The operator as a process, under the chart's Role, on a real API server with the real controllers."""

from __future__ import annotations

import urllib.request
from typing import Any

import yaml

from lora_api.reasons import Reason
from lora_api.stages import StageName
from lora_operator import names
from tests.support.builders import failed
from tests.support.cluster.harness import PROFILES, NamespaceClient, OperatorProcess, until
from tests.support.cluster.kubelet import End, FakeKubelet, ended, succeed

TRAIN, ANNOTATE = StageName.TRAIN, StageName.ANNOTATE


def test_from_photographs_to_an_adapter(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    cluster.create()
    status = cluster.wait_for("Succeeded")
    assert [stage for stage, _ in kubelet.runs] == [ANNOTATE, TRAIN]
    assert status["adapter"]["uri"].endswith("adapter.safetensors")
    assert status["progress"]["display"] == "500/500"
    assert status["effective"]["training"]["rank"] == 16
    assert cluster.condition("Accepted") == ("True", "Valid")
    assert cluster.condition("CaptionsReady") == ("True", "Captioned")
    assert cluster.condition("Succeeded") == ("True", "Trained")
    assert cluster.condition("Finished") == ("True", "Trained")
    reasons = [
        e.reason
        for e in cluster.core.list_namespaced_event(cluster.namespace).items
        if e.involved_object.kind == "LoraTrainingJob"
    ]
    assert reasons == ["Trained"], "the status tells the rest"


def test_a_job_takes_no_more_than_seven_writes(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    cluster.create()
    cluster.wait_for("Succeeded")
    managed = cluster.custom.list_namespaced_custom_object(
        "lora-training.io", "v1alpha1", cluster.namespace, "loratrainingjobs"
    )
    assert managed["items"][0]["metadata"]["generation"] == 1, "spec is never written"
    with urllib.request.urlopen(f"http://127.0.0.1:{operator.port}/metrics") as response:
        metrics = response.read().decode()
    writes = {
        line.split()[0]: float(line.split()[1])
        for line in metrics.splitlines()
        if line.startswith("lora_operator_api_writes_total")
    }
    assert 0 < sum(writes.values()) <= 7, writes


def test_a_job_waits_for_a_profile_that_is_defined_later(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    cluster.create(profile="later")
    until(lambda: cluster.condition("Succeeded") == ("Unknown", "ProfileNotFound"))
    assert "'later'" in cluster.message()
    assert cluster.jobs() == []
    path = operator.folder / "profiles.yaml"
    before = path.read_text()
    path.write_text(yaml.safe_dump({"profiles": {"later": PROFILES["profiles"]["default"]}}))
    cluster.wait_for("Succeeded")
    path.write_text(before)


def test_a_permanent_failure_is_not_retried(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda stage, _: ended(failed(Reason.CREDENTIALS_REFUSED, "wrong key"), 77)
    cluster.create()
    cluster.wait_for("Failed")
    assert cluster.condition("Succeeded") == ("False", "CredentialsRefused")
    assert cluster.message() == "wrong key"
    assert len(kubelet.runs) == 1


def test_a_transient_failure_is_retried(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    def script(stage: StageName, number: int) -> End:
        if stage == TRAIN and number == 1:
            return ended(failed(Reason.STORE_UNAVAILABLE, "no route"), 69)
        return succeed(stage, number)

    kubelet.script = script
    cluster.create()
    until(lambda: "StoreUnavailable: no route" in cluster.message())
    status = cluster.wait_for("Succeeded")
    assert [stage for stage, _ in kubelet.runs] == [ANNOTATE, TRAIN, TRAIN]
    assert status["training"]["lastFailure"]["reason"] == "StoreUnavailable"


def test_a_pod_that_is_preempted_evicted_or_lost_with_its_node_is_replaced_and_not_charged(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    causes = ["PreemptionByScheduler", "EvictionByEvictionAPI", "DeletionByTaintManager"]

    def script(stage: StageName, number: int) -> End:
        if stage == TRAIN and number <= 3:
            # more than a second apart, so that the order of the pods is known
            return End(143, "", "Error", seconds=1.1, disrupted=causes[number - 1])
        return succeed(stage, number)

    kubelet.script = script
    cluster.create(runPolicy={"backoffLimit": 0})
    status = cluster.wait_for("Succeeded")
    assert status["training"]["disruptions"] == 3
    assert status["training"]["attempt"] == 1
    assert status["training"]["lastFailure"]["reason"] == "NodeLost"
    assert status["training"]["lastFailure"]["node"].startswith("node-")


def test_suspend_and_resume(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda stage, n: succeed(stage, n) if stage == ANNOTATE else None
    cluster.create()
    cluster.wait_for("Training")
    cluster.patch({"spec": {"runPolicy": {"suspend": True}}})
    status = cluster.wait_for("Suspended")
    until(lambda: not [p for p in cluster.pods() if p.metadata.labels[names.STAGE] == "train"])
    until(lambda: not (cluster.status()["training"].get("jobName")))
    assert cluster.condition("Suspended") == ("True", "Suspended")
    assert status["training"]["attempt"] == 1
    kubelet.script = succeed
    cluster.patch({"spec": {"runPolicy": {"suspend": False}}})
    status = cluster.wait_for("Succeeded")
    assert status["training"]["attempt"] == 2
    assert cluster.condition("Suspended") == ("", "")
    assert max(kubelet.most_live.values()) == 1


def test_a_child_job_or_a_pod_that_a_user_deletes_is_recreated(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda stage, n: succeed(stage, n) if stage == ANNOTATE else None
    cluster.create()
    cluster.wait_for("Training")

    def training_pods() -> list[Any]:
        return [p for p in cluster.pods() if p.metadata.labels[names.STAGE] == "train"]

    (first,) = training_pods()
    cluster.core.delete_namespaced_pod(first.metadata.name, cluster.namespace)
    until(lambda: [p for p in training_pods() if p.metadata.uid != first.metadata.uid])
    job_name = cluster.status()["training"]["jobName"]
    before = cluster.batch.read_namespaced_job(job_name, cluster.namespace).metadata.uid
    cluster.batch.delete_namespaced_job(job_name, cluster.namespace, propagation_policy="Background")
    until(lambda: [j for j in cluster.jobs() if j.metadata.name == job_name and j.metadata.uid != before])
    kubelet.script = succeed
    cluster.wait_for("Succeeded")
    assert max(kubelet.most_live.values()) == 1


def test_an_operator_that_is_killed_at_any_time_continues(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda stage, n: None
    cluster.create()
    cluster.wait_for("Annotating")
    operator.kill()
    kubelet.script = succeed
    until(lambda: [j for j in cluster.jobs() if j.status.succeeded])
    operator.start()
    cluster.wait_for("Succeeded")
    assert [stage for stage, _ in kubelet.runs] == [ANNOTATE, TRAIN]
    assert max(kubelet.most_live.values()) == 1


def test_a_quota_that_refuses_the_pod_is_reported_and_waited_for(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    cluster.core.create_namespaced_resource_quota(cluster.namespace, quota)
    until(lambda: cluster.core.read_namespaced_resource_quota("none", cluster.namespace).status.hard)
    cluster.create()
    until(lambda: cluster.condition("Succeeded") == ("Unknown", "QuotaExceeded"))
    assert "exceeded quota" in cluster.message()
    cluster.core.delete_namespaced_resource_quota("none", cluster.namespace)
    cluster.wait_for("Succeeded")


def test_a_foreign_job_with_the_childs_name_is_left_alone(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    operator.stop()
    made = cluster.create()
    name = names.child_name("statue", made["metadata"]["uid"], ANNOTATE, 1)
    container = {"name": "x", "image": "x"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    cluster.batch.create_namespaced_job(
        cluster.namespace, {"metadata": {"name": name}, "spec": {"suspend": True, "template": template}}
    )
    operator.start()
    cluster.wait_for("Failed")
    assert cluster.condition("Succeeded") == ("False", "NameConflict")
    assert name in cluster.message()
    assert [job.metadata.name for job in cluster.jobs()] == [name]


def test_deleting_the_resource_deletes_its_pods(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda stage, n: None
    cluster.create()
    until(cluster.pods)
    cluster.delete()
    until(lambda: not cluster.pods() and not cluster.jobs())


def test_a_time_to_live_removes_the_resource(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    cluster.create(runPolicy={"ttlSecondsAfterFinished": 1})
    until(
        lambda: (
            not cluster.custom.list_namespaced_custom_object(
                "lora-training.io", "v1alpha1", cluster.namespace, "loratrainingjobs"
            )["items"]
        )
    )


def test_an_invalid_status_affects_that_job_only(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    operator.stop()
    cluster.create("mangled")
    # the CRD's schema refuses most of what could be written here; a year 0 is a date-time to it
    status = {"status": {"startTime": "0000-12-31T00:00:00Z"}}
    cluster.custom.patch_namespaced_custom_object_status(
        "lora-training.io", "v1alpha1", cluster.namespace, "loratrainingjobs", "mangled", status
    )
    cluster.create("fine")
    operator.start()
    cluster.wait_for("Succeeded", "fine")
    cluster.wait_for("Failed", "mangled")
    assert cluster.condition("Succeeded", "mangled") == ("False", "StatusInvalid")


def test_a_job_whose_status_becomes_invalid_stops_and_ends_once(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda stage, n: succeed(stage, n) if stage == ANNOTATE else None
    cluster.create(runPolicy={"ttlSecondsAfterFinished": 15})
    for attempt in (1, 2):
        cluster.wait_for("Training")
        until(lambda attempt=attempt: cluster.status()["training"]["attempt"] == attempt)
        if attempt == 1:
            cluster.patch({"spec": {"runPolicy": {"suspend": True}}})
            until(lambda: not cluster.status()["training"].get("jobName"))
            cluster.patch({"spec": {"runPolicy": {"suspend": False}}})
    status = {"status": {"startTime": "0000-12-31T00:00:00Z"}}
    cluster.custom.patch_namespaced_custom_object_status(
        "lora-training.io", "v1alpha1", cluster.namespace, "loratrainingjobs", "statue", status
    )
    finished = cluster.wait_for("Failed")["finishTime"]
    assert cluster.condition("Succeeded") == ("False", "StatusInvalid")
    until(lambda: not [pod for pod in cluster.pods() if pod.status.phase == "Running"], 20)
    assert cluster.status()["finishTime"] == finished
    until(
        lambda: (
            not cluster.custom.list_namespaced_custom_object(
                "lora-training.io", "v1alpha1", cluster.namespace, "loratrainingjobs"
            )["items"]
        ),
        40,
    )
