"""The profile's webhook at the end of local runs: the command as a process, and a receiver on a real socket."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from standardwebhooks import WebhookVerificationError

from lora_cli.exits import Exit
from tests.support.quickstart import LORA, QUICKSTART, SMALL, environment, status_of, write_tiny_model
from tests.support.webhook_receiver import Receiver, new_secret, receive

SECRET = new_secret()


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny-sdxl")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receive() as running:
        yield running


@pytest.fixture
def profiles(receiver: Receiver, tmp_path: Path) -> Path:
    """Write the quickstart's profiles file with a webhook."""
    document = yaml.safe_load((QUICKSTART / "profiles.yaml").read_text())
    hook = {"url": receiver.url, "secretName": "lora-webhook", "retrySeconds": 30}
    document["profiles"]["default"]["webhook"] = hook
    file = tmp_path / "profiles.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def command(name: str, home: Path, profiles: Path, model: Path, *settings: str) -> list[str]:
    """`lora run` of the quickstart, or `lora train` on its images, in a few steps."""
    job = yaml.safe_load((QUICKSTART / "job.yaml").read_text())["spec"]
    images = str(QUICKSTART / "images")
    if name == "run":
        start, fields = ["run", str(QUICKSTART / "job.yaml"), "--images", images], []
    else:
        start = ["train", images, "--token", "CUS", "--class", "ring", "--name", "quickstart"]
        values = [
            f"training.{key}={job['training'][key]}"
            for key in ("rank", "alpha", "optimizer", "mixedPrecision")
        ]
        fields = ["baseModel=shapes-sdxl", "resources.train.gpus=0", *values]
    options = ["--home", str(home), "--profiles", str(profiles), "--put", f"{model}:models/shapes-sdxl"]
    return [LORA, *start, *options, *(f"--set={text}" for text in [*fields, *SMALL, *settings])]


def run(arguments: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, env=environment(**more), capture_output=True, text=True, check=False, timeout=300
    )


def message(receiver: Receiver, secret: str = SECRET) -> dict[str, Any]:
    """Verify and return the only accepted message."""
    return receiver.received[-1].verify(secret)


@pytest.mark.parametrize("name", ["run", "train"])
def test_the_end_is_announced_once_and_signed(
    name: str, receiver: Receiver, profiles: Path, tiny_model: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    arguments = command(name, home, profiles, tiny_model)
    receiver.answers = [503]
    ran = run(arguments, LORA_WEBHOOK_SECRET=SECRET)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "answered 503; next attempt in 1 s" in ran.stderr
    assert "delivered" in ran.stdout
    first, second = receiver.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    with pytest.raises(WebhookVerificationError):
        message(receiver, new_secret())
    sent, status = message(receiver), status_of(home)
    assert sent["type"] == "loratrainingjob.succeeded"
    assert sent["data"]["name"] == "quickstart"
    assert sent["data"]["adapter"]["sha256"] == status["adapter"]["sha256"]
    assert (status["webhook"]["delivered"], status["webhook"]["attempts"]) == (True, 2)
    again = run(arguments, LORA_WEBHOOK_SECRET=SECRET)
    assert again.returncode == 0, again.stderr
    assert len(receiver.received) == 2, "an unchanged job is not announced again"
    key = SECRET.removeprefix("whsec_")
    assert key not in ran.stdout + ran.stderr
    assert not [file for file in home.rglob("*") if file.is_file() and key.encode() in file.read_bytes()]


def test_a_failed_job_is_announced(
    receiver: Receiver, profiles: Path, tiny_model: Path, tmp_path: Path
) -> None:
    ran = run(
        command("run", tmp_path / "home", profiles, tiny_model, "dataset.minImages=7"),
        LORA_WEBHOOK_SECRET=SECRET,
    )
    assert ran.returncode == Exit.FAILED, ran.stderr
    sent = message(receiver)
    assert sent["type"] == "loratrainingjob.failed"
    assert sent["data"]["reason"] == status_of(tmp_path / "home")["conditions"][-1]["reason"]
    assert "adapter" not in sent["data"]


def test_ctrl_c_skips_a_receiver_that_does_not_answer(
    receiver: Receiver, profiles: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """The adapter is kept, and the next run announces it."""
    receiver.answers = [503] * 100
    arguments = command("run", tmp_path / "home", profiles, tiny_model)
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *arguments],  # a background job of a shell ignores Ctrl-C
        env=environment(LORA_WEBHOOK_SECRET=SECRET),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while len(receiver.received) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "webhook: not delivered" in errors
    assert (tmp_path / "home/runs/default/quickstart/result/adapter.safetensors").is_file()
    receiver.answers = []
    assert run(arguments, LORA_WEBHOOK_SECRET=SECRET).returncode == 0
    assert len({request.headers["webhook-id"] for request in receiver.received}) == 1
    assert message(receiver)["type"] == "loratrainingjob.succeeded"
    assert status_of(tmp_path / "home")["webhook"]["delivered"] is True


@pytest.mark.parametrize(
    ("secret", "complaint"),
    [
        ("", "LORA_WEBHOOK_SECRET is not set"),
        ("a passphrase", "LORA_WEBHOOK_SECRET: the secret must be base64"),
    ],
)
def test_a_secret_that_cannot_sign_is_reported_before_anything_starts(
    receiver: Receiver, profiles: Path, tiny_model: Path, tmp_path: Path, secret: str, complaint: str
) -> None:
    ran = run(command("run", tmp_path / "home", profiles, tiny_model), LORA_WEBHOOK_SECRET=secret)
    assert ran.returncode == Exit.USAGE
    assert complaint in ran.stderr
    assert not (tmp_path / "home").exists()
    assert not receiver.received
