"""The profile's webhook at the end of jobs, with the operator as a process, a real API server and a real receiver."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lora_api import GROUP, PLURAL, VERSION
from lora_api.reasons import Reason
from lora_api.stages import StageName
from tests.support.builders import failed
from tests.support.cluster.harness import PROFILES, NamespaceClient, OperatorProcess, until
from tests.support.cluster.kubelet import End, FakeKubelet, ended, succeed
from tests.support.webhook_receiver import Receiver, new_secret, receive

SECRET = new_secret()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receive() as running:
        yield running


@pytest.fixture
def announcing(
    cluster: NamespaceClient, operator_files: OperatorProcess, receiver: Receiver, tmp_path: Path
) -> Iterator[OperatorProcess]:
    """Run an operator whose profile has a webhook, with the Secret mounted as by the kubelet."""
    # It would announce the jobs that other tests have left in namespaces that are being deleted.
    until(lambda: not cluster.custom.list_cluster_custom_object(GROUP, VERSION, PLURAL)["items"])
    profiles = copy.deepcopy(PROFILES)
    hook = {"url": receiver.url, "secretName": "lora-webhook"}
    profiles["profiles"]["default"]["webhook"] = hook
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump(profiles))
    folder = tmp_path / "webhooks/lora-webhook"
    folder.mkdir(parents=True)
    (folder / "secret").write_text(SECRET)
    settings = {"LORA_WEBHOOK_SECRETS": str(folder.parent)}
    process = replace(operator_files, folder=tmp_path, settings=settings, process=None)
    process.start()
    yield process
    process.stop()


def test_the_end_is_announced_once_and_signed(
    cluster: NamespaceClient, announcing: OperatorProcess, kubelet: FakeKubelet, receiver: Receiver
) -> None:
    receiver.answers = [500, 302]
    cluster.create()
    status = cluster.wait_for("Succeeded")
    until(lambda: cluster.status().get("webhook"))
    delivery = cluster.status()["webhook"]
    assert (delivery["delivered"], delivery["attempts"]) == (True, 3)
    assert len({request.headers["webhook-id"] for request in receiver.received}) == 1
    for request in receiver.received:
        message = request.verify(SECRET)
        assert message["type"] == "loratrainingjob.succeeded"
        assert message["data"]["uid"] == cluster.get()["metadata"]["uid"]
        assert message["data"]["adapter"] == status["adapter"]
    assert announcing.metric("lora_operator_webhooks_total") == 1
    announcing.stop()
    announcing.start()
    cluster.create("another")
    cluster.wait_for("Succeeded", "another")
    until(lambda: cluster.status("another").get("webhook"))
    names = [json.loads(request.body)["data"]["name"] for request in receiver.received]
    assert names == ["statue"] * 3 + ["another"], "a restart repeats nothing"
    assert SECRET.removeprefix("whsec_") not in announcing.log


def test_a_failure_is_announced_again_after_a_retry(
    cluster: NamespaceClient, announcing: OperatorProcess, kubelet: FakeKubelet, receiver: Receiver
) -> None:
    kubelet.script = lambda stage, _: ended(failed(Reason.CREDENTIALS_REFUSED, "wrong key"), 77)
    cluster.create()
    until(lambda: cluster.status().get("webhook"))
    kubelet.script = succeed
    cluster.patch({"spec": {"runPolicy": {"retry": 1}}})
    cluster.wait_for("Succeeded")
    until(lambda: len(receiver.received) == 2)
    first, second = (request.verify(SECRET) for request in receiver.received)
    assert (first["type"], first["data"]["reason"]) == ("loratrainingjob.failed", "CredentialsRefused")
    assert second["type"] == "loratrainingjob.succeeded"
    ids = [request.headers["webhook-id"] for request in receiver.received]
    assert ids[0] != ids[1]


def test_an_operator_that_is_killed_before_the_delivery_delivers_later(
    cluster: NamespaceClient, announcing: OperatorProcess, kubelet: FakeKubelet, receiver: Receiver
) -> None:
    receiver.answers = [503] * 1000
    cluster.create(runPolicy={"ttlSecondsAfterFinished": 1})
    until(lambda: len(receiver.received) >= 2)
    announcing.kill()
    assert cluster.phase() == "Succeeded", (
        "the resource outlives its time to live until the message is delivered"
    )
    receiver.answers.clear()
    before = len(receiver.received)
    announcing.start()
    until(lambda: len(receiver.received) > before)
    assert len({request.headers["webhook-id"] for request in receiver.received}) == 1

    def jobs() -> list[object]:
        return list(
            cluster.custom.list_namespaced_custom_object(GROUP, VERSION, cluster.namespace, PLURAL)["items"]
        )

    until(lambda: not jobs())


def test_a_job_cannot_name_a_receiver(
    cluster: NamespaceClient, announcing: OperatorProcess, receiver: Receiver
) -> None:
    """A receiver can be named by a profile only. Fields of a job that look like a webhook are refused."""
    made = cluster.create(webhook={"url": "http://169.254.169.254/"})
    assert "webhook" not in made["spec"], "pruned by the API server"


def test_many_jobs_do_not_wait_for_a_receiver_that_hangs(
    cluster: NamespaceClient, announcing: OperatorProcess, kubelet: FakeKubelet, receiver: Receiver
) -> None:
    receiver.wait_seconds = 5.0

    def script(stage: StageName, number: int) -> End:
        return succeed(stage, number)

    kubelet.script = script
    names = [f"job-{number}" for number in range(4)]
    for name in names:
        cluster.create(name)
    for name in names:
        cluster.wait_for("Succeeded", name)
    assert not any(cluster.status(name).get("webhook") for name in names[2:])
