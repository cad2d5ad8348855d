"""Webhooks: when they are sent, what they contain, how they are signed, and what happens when nobody accepts them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import re
import ssl
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lora_api.profile import Webhook
from lora_api.reasons import Reason
from lora_api.stages import StageName
from lora_api.status import JobStatus, Phase, WebhookStatus
from lora_operator import webhooks
from lora_operator.decide import WEBHOOK_GRACE, DeleteResource, SendWebhook, decide
from lora_operator.snapshot import Snapshot
from lora_operator.staleness import must_read_again
from lora_operator.webhooks import WebhookError, Webhooks, build_delivery, deliver, parse_secrets, post
from tests.support.builders import (
    NOW,
    PROFILE,
    TRAINED,
    child,
    failed,
    pod,
    seconds,
    snapshot,
    training,
)
from tests.support.certificates import make_certificate
from tests.support.ports import free_port
from tests.support.quickstart import ROOT
from tests.support.webhook_receiver import Receiver, new_secret, receive

SECRET = new_secret()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "FIRST_RETRY_SECONDS", 0.02)


def webhook(url: str = "http://receiver.example/", **fields: Any) -> Webhook:
    return Webhook.model_validate({"url": url, "secretName": "hook", **fields})


def job_that_ended(
    hook: Webhook | None = None, outcome: Any = TRAINED, spec: dict[str, Any] | None = None, **fields: Any
) -> Snapshot:
    """A job whose end is in its stored status."""
    profile = PROFILE.model_copy(update={"webhook": hook or webhook()})
    state: dict[str, Any] = {"complete": True} if outcome is TRAINED else {"failed": "PodFailurePolicy"}
    exit_code = 0 if outcome is TRAINED else 78
    ended = pod("Succeeded" if outcome is TRAINED else "Failed", outcome, exit_code=exit_code)
    running = snapshot(
        spec=spec,
        profile=profile,
        status=training(),
        children=(child(StageName.TRAIN, ended, **state),),
    )
    status = decide(running, NOW).status
    assert status.phase.terminal
    return replace(running, status=status, **fields)


def sent(decision: Any) -> list[SendWebhook]:
    return [action for action in decision.actions if isinstance(action, SendWebhook)]


def test_the_end_is_announced_once_it_is_in_the_status() -> None:
    profile = PROFILE.model_copy(update={"webhook": webhook()})
    ended = pod("Succeeded", TRAINED, exit_code=0)
    running = snapshot(profile=profile, status=training(), children=(child(StageName.TRAIN, ended),))
    first = decide(running, NOW)
    assert first.status.phase == Phase.SUCCEEDED
    assert not sent(first)
    second = decide(replace(running, status=first.status), NOW)
    assert sent(second) == [SendWebhook(webhook(), NOW + seconds(3600))]
    assert not must_read_again(replace(running, status=first.status), second, False)


def test_a_job_that_runs_is_not_announced() -> None:
    profile = PROFILE.model_copy(update={"webhook": webhook()})
    assert not sent(decide(snapshot(profile=profile), NOW))


@pytest.mark.parametrize("delivered", [True, False])
def test_the_result_is_recorded_and_nothing_is_sent_again(delivered: bool) -> None:
    result = WebhookStatus(delivered=delivered, attempts=3, time=NOW)
    before = job_that_ended(delivery=result)
    decision = decide(before, NOW)
    assert decision.status.webhook == result
    assert not sent(decision)
    assert not sent(decide(replace(before, status=decision.status, delivery=None), NOW))


def test_a_job_that_ended_long_ago_is_not_announced() -> None:
    before = job_that_ended()
    due = timedelta(seconds=3600) + WEBHOOK_GRACE
    assert sent(decide(before, NOW + due - seconds(1)))
    assert decide(before, NOW + due).status == before.status
    assert not sent(decide(before, NOW + due))


def test_a_resource_is_deleted_after_its_announcement() -> None:
    before = job_that_ended(spec={"runPolicy": {"ttlSecondsAfterFinished": 10}})
    waiting = decide(before, NOW + seconds(11))
    assert DeleteResource() not in waiting.actions
    result = WebhookStatus(delivered=True, attempts=1, time=NOW)
    assert DeleteResource() in decide(replace(before, delivery=result), NOW + seconds(11)).actions
    later = decide(before, NOW + seconds(3600) + WEBHOOK_GRACE)
    assert DeleteResource() in later.actions


def test_a_retried_job_is_announced_again() -> None:
    broken = failed(Reason.CREDENTIALS_REFUSED)
    before = job_that_ended(outcome=broken, delivery=WebhookStatus(delivered=True, attempts=1, time=NOW))
    recorded = decide(before, NOW).status
    retried = snapshot(spec={"runPolicy": {"retry": 1}}, profile=before.profile, status=recorded)
    assert decide(retried, NOW).status.webhook is None


def delivery(hook: Webhook, retry: float = 0.0) -> webhooks.Delivery:
    return build_delivery(job_that_ended(hook), hook, datetime.now(UTC) + seconds(retry))


def test_the_message_names_the_job_and_its_adapter() -> None:
    ended = job_that_ended()
    message = json.loads(build_delivery(ended, webhook(), NOW).body)
    assert message["type"] == "loratrainingjob.succeeded"
    assert message["timestamp"] == "2026-03-01T12:00:00Z"
    data = message["data"]
    assert (data["namespace"], data["name"], data["uid"]) == (ended.namespace, ended.name, ended.uid)
    assert (data["profile"], data["phase"], data["reason"]) == ("default", "Succeeded", "Trained")
    assert data["adapter"] == ended.status.to_wire()["adapter"]
    broken = job_that_ended(outcome=failed(Reason.CREDENTIALS_REFUSED, "wrong key"))
    message = json.loads(build_delivery(broken, webhook(), NOW).body)
    assert message["type"] == "loratrainingjob.failed"
    assert (message["data"]["reason"], message["data"]["message"]) == ("CredentialsRefused", "wrong key")


def test_the_id_is_that_of_the_end() -> None:
    status = JobStatus(finish_time=NOW)
    uid = "8d2f6a54-6a0a-4ef5-9b43-3f5b6b1d2c11"
    assert webhooks.message_id(uid, status) == webhooks.message_id(uid, status)
    assert webhooks.message_id(uid, status) != webhooks.message_id(
        uid, JobStatus(finish_time=NOW + seconds(1))
    )
    assert webhooks.message_id(uid, status) != webhooks.message_id("no-uuid", status)


def test_the_signature_is_the_specifications() -> None:
    """Computed here from the text of the specification, and verified by its library."""
    second = new_secret()
    with receive() as receiver:
        message = delivery(webhook(receiver.url))
        asyncio.run(post(message, parse_secrets(f"{SECRET}\n{second}\n")))
    [request] = receiver.received
    assert request.path == "/lora?from=tests"
    for secret in (SECRET, second):
        assert request.verify(secret)["data"]["name"] == "statue"
    signed = f"{message.id}.{request.headers['webhook-timestamp']}.".encode() + request.body
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert request.headers["webhook-signature"].split()[0] == f"v1,{expected}"
    assert request.headers["webhook-id"] == message.id
    assert request.headers["content-type"] == "application/json"


def run(receiver_url: str, retry: float, **fields: Any) -> tuple[WebhookStatus, list[str]]:
    """Deliver a message; return the result and the causes of the failed attempts."""
    causes: list[str] = []

    async def attempt(message: webhooks.Delivery) -> None:
        await post(message, parse_secrets(SECRET))

    message = delivery(webhook(receiver_url, **fields), retry)
    return asyncio.run(deliver(message, attempt, lambda cause, _: causes.append(cause))), causes


def test_a_receiver_that_fails_is_tried_again_with_the_same_message() -> None:
    with receive() as receiver:
        receiver.answers = [500, 429, 200]
        result, causes = run(receiver.url, retry=30)
    assert (result.delivered, result.attempts) == (True, 3)
    assert [cause.rpartition(" ")[2] for cause in causes] == ["500", "429"]
    assert len({request.headers["webhook-id"] for request in receiver.received}) == 1
    assert len({request.body for request in receiver.received}) == 1
    first, second, third = (request.at for request in receiver.received)
    assert third - second > second - first, "the pauses grow"


def test_attempts_end_at_the_deadline() -> None:
    with receive() as receiver:
        receiver.answers = [503] * 1000
        result, _ = run(receiver.url, retry=0.3)
    assert not result.delivered
    assert result.attempts == len(receiver.received) >= 2
    assert "answered 503" in result.message


def test_one_attempt_is_made_without_retries() -> None:
    with receive() as receiver:
        receiver.answers = [500]
        result, _ = run(receiver.url, retry=0)
    assert (result.delivered, result.attempts) == (False, 1)


def test_a_receiver_that_is_gone_is_left_alone() -> None:
    with receive() as receiver:
        receiver.answers = [410, 200]
        result, _ = run(receiver.url, retry=30)
    assert (result.delivered, len(receiver.received)) == (False, 1)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    with receive() as inner, receive() as receiver:
        receiver.answers, receiver.location = [status], inner.url
        result, _ = run(receiver.url, retry=0)
    assert not inner.received
    assert "redirects are not followed" in result.message


def test_a_slow_receiver_is_not_waited_for() -> None:
    with receive() as receiver:
        receiver.wait_seconds = 1.5
        result, _ = run(receiver.url, retry=0, timeoutSeconds=1)
    assert "did not answer within 1 s" in result.message


def test_messages_hide_the_url() -> None:
    """It may contain a password, and the status is read by the job's author."""
    with receive() as receiver:
        pass
    result, _ = run(receiver.url, retry=0)
    assert "Connect call failed" in result.message or "refused" in result.message.lower()
    assert "from=tests" not in result.message


def test_a_private_authority_is_trusted_where_the_secret_names_it(tmp_path: Path) -> None:
    folder = make_certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    with receive(tls=tls) as receiver:
        message = delivery(webhook(receiver.url))
        with pytest.raises(WebhookError, match="certificate"):
            asyncio.run(post(message, parse_secrets(SECRET)))
        asyncio.run(post(message, parse_secrets(SECRET), folder / "ca.crt"))
    assert len(receiver.received) == 1


@pytest.mark.parametrize(
    "text",
    ["", "\n", "whsec_", "not base64!", "wh\u00e9", "c2hvcnQ=", "a passphrase of more than 24 letters"],
)
def test_a_secret_that_cannot_sign_is_refused(text: str) -> None:
    with pytest.raises(WebhookError, match="secret"):
        parse_secrets(text)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "receiver.example/x",
        "ftp://receiver.example",
        "http://user:key@receiver.example/",
        "http:///x",
        "http://a b/",
    ],
)
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="url"):
        webhook(url)


def test_a_secret_may_come_later_and_is_read_for_each_attempt(tmp_path: Path) -> None:
    async def main(receiver: Receiver) -> WebhookStatus:
        done = asyncio.Event()
        pool = Webhooks(tmp_path, lambda key: done.set())
        message = delivery(webhook(receiver.url), retry=30)
        pool.send(message)
        pool.send(message)
        await asyncio.sleep(0.1)
        (tmp_path / "hook").mkdir()
        (tmp_path / "hook/secret").write_text(SECRET)
        await asyncio.wait_for(done.wait(), 20)
        pool.send(message)  # its result is known
        found = pool.result(message.key, message.id)
        pool.forget(message.key)
        assert found is not None
        assert pool.result(message.key, message.id) is None
        await pool.stop()
        return found

    with receive() as receiver:
        result = asyncio.run(main(receiver))
    assert result.delivered
    assert result.attempts > 1
    assert len(receiver.received) == 1
    receiver.received[0].verify(SECRET)


def test_the_documented_receiver_verifies_messages(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/webhooks.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    port = free_port()
    environment = {**os.environ, "WEBHOOK_SECRET": SECRET, "PORT": str(port)}
    script = [sys.executable, "-c", code]
    with subprocess.Popen(
        script, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            result, _ = run(f"http://127.0.0.1:{port}/", retry=60)
            assert result.delivered
            assert process.stdout
            assert process.stdout.readline() == "loratrainingjob.succeeded statue Trained\n"
            message = delivery(webhook(f"http://127.0.0.1:{port}/"))
            with pytest.raises(WebhookError, match="answered 401"):
                asyncio.run(post(message, parse_secrets(new_secret())))
        finally:
            process.kill()
