"""The operator as a process, under the chart's Role, on a real API server with the real controllers."""

from __future__ import annotations

import urllib.request
from typing import Any

from kubelet import End, FakeKubelet, ended, well
from studio import OperatorProcess, Studio, until

from builders import failed
from lora_api.reasons import Reason
from lora_api.steps import StepName
from lora_operator import names

TRAIN, ANNOTATE = StepName.TRAIN, StepName.ANNOTATE


def test_from_photographs_to_an_adapter(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    studio.create()
    status = studio.wait_for("Succeeded")
    assert [step for step, _ in kubelet.runs] == [ANNOTATE, TRAIN]
    assert status["adapter"]["uri"].endswith("adapter.safetensors")
    assert status["progress"]["display"] == "500/500"
    assert status["effective"]["training"]["rank"] == 16
    assert studio.condition("Accepted") == ("True", "Valid")
    assert studio.condition("CaptionsReady") == ("True", "Captioned")
    assert studio.condition("Succeeded") == ("True", "Trained")
    assert studio.condition("Finished") == ("True", "Trained")
    reasons = [
        e.reason
        for e in studio.core.list_namespaced_event(studio.namespace).items
        if e.involved_object.kind == "LoraTrainingJob"
    ]
    assert sorted(reasons) == ["Annotating", "Trained", "Training"]


def test_a_job_takes_no_more_than_ten_writes(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    studio.create()
    studio.wait_for("Succeeded")
    managed = studio.custom.list_namespaced_custom_object(
        "lora-training.io", "v1alpha1", studio.namespace, "loratrainingjobs"
    )
    assert managed["items"][0]["metadata"]["generation"] == 1, "spec is never written"
    with urllib.request.urlopen(f"http://127.0.0.1:{operator.port}/metrics") as response:
        metrics = response.read().decode()
    writes = {
        line.split()[0]: float(line.split()[1])
        for line in metrics.splitlines()
        if line.startswith("lora_operator_api_writes_total")
    }
    assert 0 < sum(writes.values()) <= 10, writes


def test_an_unknown_profile_ends_with_its_name(studio: Studio, operator: OperatorProcess) -> None:
    studio.create(profile="nope")
    studio.wait_for("Failed")
    assert studio.condition("Succeeded") == ("False", "ProfileNotFound")
    assert "'nope'" in studio.message()
    assert studio.jobs() == []


def test_a_permanent_failure_is_not_tried_again(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda step, _: ended(failed(Reason.CREDENTIALS_REFUSED, "wrong key"), 77)
    studio.create()
    studio.wait_for("Failed")
    assert studio.condition("Succeeded") == ("False", "CredentialsRefused")
    assert studio.message() == "wrong key"
    assert len(kubelet.runs) == 1


def test_a_transient_failure_is_tried_again(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    def script(step: StepName, number: int) -> End:
        if step == TRAIN and number == 1:
            return ended(failed(Reason.STORE_UNAVAILABLE, "no route"), 69)
        return well(step, number)

    kubelet.script = script
    studio.create()
    until(lambda: "StoreUnavailable: no route" in studio.message())
    status = studio.wait_for("Succeeded")
    assert [step for step, _ in kubelet.runs] == [ANNOTATE, TRAIN, TRAIN]
    assert status["training"]["lastFailure"]["reason"] == "StoreUnavailable"


def test_a_pod_that_is_preempted_evicted_or_lost_with_its_node_is_replaced_and_not_charged(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    causes = ["PreemptionByScheduler", "EvictionByEvictionAPI", "DeletionByTaintManager"]

    def script(step: StepName, number: int) -> End:
        if step == TRAIN and number <= 3:
            # more than a second apart, so that the last one can be told
            return End(143, "", "Error", seconds=1.1, disrupted=causes[number - 1])
        return well(step, number)

    kubelet.script = script
    studio.create(runPolicy={"backoffLimit": 0})
    status = studio.wait_for("Succeeded")
    assert status["training"]["disruptions"] == 3
    assert status["training"]["attempt"] == 1
    assert status["training"]["lastFailure"]["reason"] == "NodeLost"
    assert status["training"]["lastFailure"]["node"].startswith("node-")


def test_suspend_and_resume(studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet) -> None:
    kubelet.script = lambda step, n: well(step, n) if step == ANNOTATE else None
    studio.create()
    studio.wait_for("Training")
    studio.patch({"spec": {"runPolicy": {"suspend": True}}})
    status = studio.wait_for("Suspended")
    until(lambda: not [p for p in studio.pods() if p.metadata.labels[names.STEP] == "train"])
    until(lambda: not (studio.status()["training"].get("jobName")))
    assert studio.condition("Suspended") == ("True", "Suspended")
    assert status["training"]["attempt"] == 1
    kubelet.script = well
    studio.patch({"spec": {"runPolicy": {"suspend": False}}})
    status = studio.wait_for("Succeeded")
    assert status["training"]["attempt"] == 2
    assert studio.condition("Suspended") == ("", "")
    assert max(kubelet.most_live.values()) == 1


def test_a_job_or_a_pod_that_a_person_deletes_is_made_again(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda step, n: well(step, n) if step == ANNOTATE else None
    studio.create()
    studio.wait_for("Training")

    def training_pods() -> list[Any]:
        return [p for p in studio.pods() if p.metadata.labels[names.STEP] == "train"]

    (first,) = training_pods()
    studio.core.delete_namespaced_pod(first.metadata.name, studio.namespace)
    until(lambda: [p for p in training_pods() if p.metadata.uid != first.metadata.uid])
    job_name = studio.status()["training"]["jobName"]
    before = studio.batch.read_namespaced_job(job_name, studio.namespace).metadata.uid
    studio.batch.delete_namespaced_job(job_name, studio.namespace, propagation_policy="Background")
    until(lambda: [j for j in studio.jobs() if j.metadata.name == job_name and j.metadata.uid != before])
    kubelet.script = well
    studio.wait_for("Succeeded")
    assert max(kubelet.most_live.values()) == 1


def test_killed_at_any_time_the_operator_goes_on(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda step, n: None
    studio.create()
    studio.wait_for("Annotating")
    operator.kill()
    kubelet.script = well
    until(lambda: [j for j in studio.jobs() if j.status.succeeded])
    operator.start()
    studio.wait_for("Succeeded")
    assert [step for step, _ in kubelet.runs] == [ANNOTATE, TRAIN]
    assert max(kubelet.most_live.values()) == 1


def test_a_quota_that_refuses_the_pod_is_told_and_waited_for(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    studio.core.create_namespaced_resource_quota(studio.namespace, quota)
    until(lambda: studio.core.read_namespaced_resource_quota("none", studio.namespace).status.hard)
    studio.create()
    until(lambda: studio.condition("Succeeded") == ("Unknown", "QuotaExceeded"))
    assert "exceeded quota" in studio.message()
    studio.core.delete_namespaced_resource_quota("none", studio.namespace)
    studio.wait_for("Succeeded")


def test_a_stranger_with_our_childs_name_is_left_alone(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    operator.stop()
    made = studio.create()
    name = names.child_name("statue", made["metadata"]["uid"], ANNOTATE, 1)
    container = {"name": "x", "image": "x"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    studio.batch.create_namespaced_job(
        studio.namespace, {"metadata": {"name": name}, "spec": {"suspend": True, "template": template}}
    )
    operator.start()
    studio.wait_for("Failed")
    assert studio.condition("Succeeded") == ("False", "NameConflict")
    assert name in studio.message()
    assert [job.metadata.name for job in studio.jobs()] == [name]


def test_deleting_the_resource_takes_its_pods_along(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda step, n: None
    studio.create()
    until(studio.pods)
    studio.delete()
    until(lambda: not studio.pods() and not studio.jobs())


def test_a_time_to_live_removes_the_resource(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    studio.create(runPolicy={"ttlSecondsAfterFinished": 1})
    until(
        lambda: (
            not studio.custom.list_namespaced_custom_object(
                "lora-training.io", "v1alpha1", studio.namespace, "loratrainingjobs"
            )["items"]
        )
    )


def test_a_mangled_status_is_that_jobs_own_trouble(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    operator.stop()
    studio.create("mangled")
    # the CRD's schema refuses most of what could be written here; a year 0 is a date-time to it
    status = {"status": {"startTime": "0000-12-31T00:00:00Z"}}
    studio.custom.patch_namespaced_custom_object_status(
        "lora-training.io", "v1alpha1", studio.namespace, "loratrainingjobs", "mangled", status
    )
    studio.create("fine")
    operator.start()
    studio.wait_for("Succeeded", "fine")
    studio.wait_for("Failed", "mangled")
    assert studio.condition("Succeeded", "mangled") == ("False", "StatusInvalid")
