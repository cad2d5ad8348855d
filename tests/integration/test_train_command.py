"""`lora train` from a folder to an adapter, then `runs`, `open` and `push`."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.support.quickstart import LORA, QUICKSTART, SMALL, environment, write_tiny_model

TINY = {
    "baseModel": "shapes-sdxl", "training.rank": 4, "training.alpha": 4, "training.optimizer": "AdamW",
    "training.mixedPrecision": "fp32", "resources.train.gpus": 0,
}  # fmt: skip


def lora(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [LORA, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(**more), timeout=300
    )


def test_a_folder_becomes_an_adapter(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny-sdxl")
    settings = [f"--set={name}={value}" for name, value in TINY.items()] + [f"--set={text}" for text in SMALL]
    home = tmp_path / "home"
    ran = lora(
        "train", QUICKSTART / "images", "--token", "CUS", "--class", "ring", "--name", "photos", "--home", home,
        "--profiles", QUICKSTART / "profiles.yaml", "--put", f"{model}:models/shapes-sdxl", *settings,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Succeeded" in ran.stdout
    listed = lora("runs", "--home", home)
    assert "default/photos" in listed.stdout
    assert "Succeeded" in listed.stdout
    items = json.loads(lora("runs", "--home", home, "-o", "json").stdout)["items"]
    assert [item["metadata"]["name"] for item in items] == ["photos"]
    opened = lora("open", "photos", "--print", "--home", home)
    assert Path(opened.stdout.strip()).read_text().startswith("<!doctype html>")


def test_too_many_photographs_are_refused_before_anything_is_copied(tmp_path: Path) -> None:
    (photos := tmp_path / "photos").mkdir()
    for number in range(40):
        (photos / f"{number}.jpg").write_bytes(b"")
    settings = [f"--set={name}={value}" for name, value in TINY.items()]
    ran = lora(
        "train", photos, "--token", "CUS", "--class", "ring", "--home", tmp_path / "home",
        "--profiles", QUICKSTART / "profiles.yaml", *settings,
    )  # fmt: skip
    assert ran.returncode == 64
    assert "has 40 images, and the job takes 5 to 20" in ran.stderr
    assert "--set dataset.maxImages=40" in ran.stderr
    assert not (tmp_path / "home").exists()


CARD = "---\ninstance_prompt: a photo of CUS backpack\n---\n"


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """Return a home with one finished job."""
    folder = tmp_path / "home/runs/default/photos"
    (folder / "result").mkdir(parents=True)
    (folder / "result/adapter.safetensors").write_bytes(b"weights")
    (folder / "result/README.md").write_text(CARD)
    spec = {"concept": {"token": "CUS", "className": "backpack"}}
    metadata = {"name": "photos", "namespace": "default", "uid": "1"}
    status = {"metadata": metadata, "spec": spec, "status": {"phase": "Succeeded"}}
    (folder / "status.yaml").write_text(yaml.safe_dump(status))
    return tmp_path / "home"


def test_an_adapter_is_pushed_to_the_hub(finished: Path, httpserver: HTTPServer) -> None:
    """The hub's real client uploads to a server that accepts commits."""
    commits: list[dict[str, Any]] = []
    created: list[dict[str, Any]] = []

    def create(request: Request) -> Response:
        assert request.headers["Authorization"] == "Bearer hf_test"
        created.append(request.get_json())
        return as_json({"url": f"{httpserver.url_for('')}me/backpack", "name": "me/backpack", "id": "1"})

    def preupload(request: Request) -> Response:
        files = request.get_json()["files"]
        modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
        return as_json({"files": modes})

    def commit(request: Request) -> Response:
        commits.extend(json.loads(line) for line in request.get_data().splitlines())
        return as_json(
            {"commitUrl": httpserver.url_for("/c/1"), "commitOid": "1" * 40, "pullRequestUrl": None}
        )

    repo = "/api/models/me/backpack"
    httpserver.expect_request("/api/repos/create", method="POST").respond_with_handler(create)
    httpserver.expect_request("/api/validate-yaml").respond_with_json({"errors": [], "warnings": []})
    httpserver.expect_request(f"{repo}/preupload/main", method="POST").respond_with_handler(preupload)
    httpserver.expect_request(f"{repo}/commit/main", method="POST").respond_with_handler(commit)
    hub = {
        "HF_ENDPOINT": httpserver.url_for("").rstrip("/"),
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
    }
    pushed = lora("push", "photos", "me/backpack", "--home", finished, **hub)
    assert pushed.returncode == 0, pushed.stderr
    assert "me/backpack" in pushed.stdout
    assert created[0]["visibility"] == "private"
    sent = {
        c["value"]["path"]: base64.b64decode(c["value"]["content"]) for c in commits if c["key"] == "file"
    }
    assert sent["adapter.safetensors"] == b"weights"
    assert sent["README.md"].decode() == CARD


def test_a_hub_that_refuses_is_named(finished: Path, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/api/repos/create").respond_with_json({"error": "Invalid token"}, status=401)
    hub = {"HF_ENDPOINT": httpserver.url_for("").rstrip("/"), "HF_TOKEN": "hf_wrong"}
    refused = lora("push", "photos", "me/backpack", "--home", finished, **hub)
    assert refused.returncode == 77
    assert "the hub refused the upload" in refused.stderr
    assert lora("push", "photos", "../x", "--home", finished, **hub).returncode == 64


def as_json(data: Any) -> Response:
    return Response(json.dumps(data), content_type="application/json")
