"""`lora run` as a process, on the quickstart's files, with a real store and a small model."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.support.quickstart import (
    QUICKSTART,
    command,
    environment,
    lora_run,
    result_of,
    status_of,
    write_tiny_model,
)
from tests.support.segmenter import write_segmenter


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny-sdxl")


@pytest.fixture(scope="session")
def uninterrupted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    home = tmp_path_factory.mktemp("uninterrupted")
    ran = lora_run(home, tiny_model)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return home, ran.stdout


def test_images_become_a_verified_adapter(uninterrupted: tuple[Path, str]) -> None:
    home, output = uninterrupted
    status = status_of(home)
    assert status["phase"] == "Succeeded"
    adapter = (result_of(home) / "adapter.safetensors").read_bytes()
    assert hashlib.sha256(adapter).hexdigest() == status["adapter"]["sha256"]
    assert len(adapter) == status["adapter"]["bytes"]
    for word in ("Annotating", "Training", "Succeeded", status["adapter"]["sha256"], "Loss", "over 6 steps"):
        assert word in output
    [sheet] = [line.split()[1] for line in output.splitlines() if line.startswith("Previews")]
    with Image.open(sheet) as drawn:
        assert drawn.size == (
            2 * 262 + 6,
            3 * 298 + 6,
        )  # three prompts, each by the base model and the adapter


def test_no_credential_is_left_behind(uninterrupted: tuple[Path, str]) -> None:
    home, _ = uninterrupted
    assert list((home / "runs").rglob("*Key")) == []


def test_an_unchanged_job_is_reused_in_seconds(uninterrupted: tuple[Path, str], tiny_model: Path) -> None:
    home, _ = uninterrupted
    before = status_of(home)["adapter"]
    ran = lora_run(home, tiny_model, "output.reuse=IfUnchanged")
    assert ran.returncode == 0, ran.stdout
    assert "Reused" in ran.stdout
    assert status_of(home)["adapter"] == before
    assert "training" not in status_of(home)


def test_masks_by_grabcut_change_the_loss(
    uninterrupted: tuple[Path, str], tiny_model: Path, tmp_path: Path
) -> None:
    ran = lora_run(tmp_path, tiny_model, "annotation.masks=GrabCut", "training.masking.outsideWeight=0.2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    plain, masked = (
        json.loads((result_of(home) / "manifest.json").read_text()) for home in (uninterrupted[0], tmp_path)
    )
    assert masked["firstLoss"] != plain["firstLoss"]
    assert masked["finalLoss"] != plain["finalLoss"]
    assert masked["inputHash"] != plain["inputHash"]
    assert masked["adapter"]["sha256"] != plain["adapter"]["sha256"]


def test_masks_by_a_model_change_the_loss(
    uninterrupted: tuple[Path, str], tiny_model: Path, tmp_path: Path
) -> None:
    segmenter = write_segmenter(tmp_path / "clipseg")
    profiles = yaml.safe_load((QUICKSTART / "profiles.yaml").read_text())
    profiles["profiles"]["default"]["segmentation"] = {"source": "store", "key": "models/clipseg/"}
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump(profiles))

    def run(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
        settings = ["annotation.masks=Model", "training.masking.outsideWeight=0.2"]
        words = [*command(home, tiny_model, *settings), *options]
        return subprocess.run(
            words, check=False, env=environment(), capture_output=True, text=True, timeout=300
        )

    refused = run(tmp_path / "refused")
    assert refused.returncode == 64
    assert "spec.annotation.masks: profile 'default' has no segmentation model" in refused.stderr
    home = tmp_path / "home"
    ran = run(home, "--profiles", str(tmp_path / "profiles.yaml"), "--put", f"{segmenter}:models/clipseg")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    plain, masked = (
        json.loads((result_of(path) / "manifest.json").read_text()) for path in (uninterrupted[0], home)
    )
    # the first sample may be an image without a mask
    assert masked["finalLoss"] != plain["finalLoss"]
    assert masked["inputHash"] != plain["inputHash"]
    assert masked["adapter"]["sha256"] != plain["adapter"]["sha256"]


def test_ctrl_c_suspends_and_the_next_run_ends_with_the_same_adapter(
    uninterrupted: tuple[Path, str], tiny_model: Path, tmp_path: Path
) -> None:
    expected = status_of(uninterrupted[0])["adapter"]["sha256"]
    with (tmp_path / "out").open("w+") as out:
        process = subprocess.Popen(command(tmp_path, tiny_model), env=environment(), stdout=out)
        checkpoints = tmp_path / "runs/default/quickstart"
        deadline = time.monotonic() + 120
        while not any("checkpoint of step" in log.read_text() for log in checkpoints.glob("*train*.log")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 3
        out.seek(0)
        printed = out.read()
    # The command itself resumes; local users need not set a field.
    assert "run the same command again to resume" in printed
    assert not {"pod", "runPolicy"} & set(re.findall(r"\w+", printed))
    assert status_of(tmp_path)["phase"] == "Suspended"
    ran = lora_run(tmp_path, tiny_model)
    assert ran.returncode == 0, ran.stdout
    status = status_of(tmp_path)
    assert status["training"]["attempt"] == 2
    assert status["training"]["resumedFromStep"] >= 2
    assert status["adapter"]["sha256"] == expected


def messages_api(server: HTTPServer) -> list[dict[str, Any]]:
    """Serve a Messages API that fills in the fields for every image."""
    asked: list[dict[str, Any]] = []

    def answer(request: Request) -> Response:
        asked.append(
            {"key": request.headers.get("X-Api-Key", request.headers.get("Authorization")), **request.json}
        )
        fields = dict.fromkeys(request.json["output_config"]["format"]["schema"]["properties"], "")
        fields |= {"setting": "in front of a plain wall"}
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": request.json["model"],
            "content": [{"type": "text", "text": json.dumps(fields)}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 900, "output_tokens": 60},
        }
        return Response(json.dumps(message), content_type="application/json")

    server.expect_request("/v1/messages").respond_with_handler(answer)
    return asked


def test_with_a_key_the_captions_are_the_llms(
    tiny_model: Path, tmp_path: Path, httpserver: HTTPServer
) -> None:
    asked = messages_api(httpserver)
    ran = lora_run(
        tmp_path,
        tiny_model,
        "annotation.mode=LLM",
        "annotation.existingCaptions=Overwrite",
        ANTHROPIC_API_KEY="a-test-key",
        ANTHROPIC_BASE_URL=httpserver.url_for("").rstrip("/"),
    )
    assert ran.returncode == 0, ran.stdout
    assert len(asked) == 6
    assert all("a-test-key" in str(request["key"]) for request in asked)
    usage = status_of(tmp_path)["captions"]["usage"]
    assert (usage["requests"], usage["inputTokens"]) == (6, 5400)
    assert float(usage["costUSD"]) == pytest.approx(6 * (900 * 0.10 + 60 * 0.50) / 1e6)


def test_a_refused_key_ends_with_its_reason(tiny_model: Path, tmp_path: Path, httpserver: HTTPServer) -> None:
    error = {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}
    httpserver.expect_request("/v1/messages").respond_with_json(error, status=401)
    ran = lora_run(
        tmp_path,
        tiny_model,
        "annotation.mode=LLM",
        "annotation.existingCaptions=Overwrite",
        ANTHROPIC_API_KEY="wrong",
        ANTHROPIC_BASE_URL=httpserver.url_for("").rstrip("/"),
    )
    assert ran.returncode == 1, ran.stdout
    assert "CredentialsRefused" in ran.stdout


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.rank=0", "spec.training.rank"),
        ("training.mixedPrecision=fp16", "fp32"),
        ("baseModel=nope", "spec.baseModel"),
        ("dataset.minImages=7", "6"),
        ("training", "FIELD=VALUE"),
    ],
)
def test_mistakes_are_named(tiny_model: Path, tmp_path: Path, setting: str, words: str) -> None:
    ran = lora_run(tmp_path, tiny_model, setting)
    assert ran.returncode in (1, 64), ran.stderr
    assert words in ran.stdout + ran.stderr


def test_a_recipe_is_applied_when_the_images_are_captioned(tiny_model: Path, tmp_path: Path) -> None:
    ran = lora_run(tmp_path, tiny_model, "training.recipe=Auto")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    settings = status_of(tmp_path)["effective"]["training"]
    assert (settings["recipe"], settings["adapter"]["targets"]) == ("Subject", "AttentionAndFeedForward")
    assert settings["maxSteps"] == 6, "the file's value wins"
    assert "recipe Subject set for 6 images" in (result_of(tmp_path) / "report.html").read_text()
    again = lora_run(tmp_path, tiny_model, "training.recipe=Auto")
    assert again.returncode == 0
    assert "Annotating" not in again.stdout, "an unchanged job is not run again"
