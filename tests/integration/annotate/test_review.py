"""Captions are pulled, edited, pushed and approved, and the stage uses the edited ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytest_httpserver import HTTPServer
from typer.testing import CliRunner
from werkzeug import Request, Response

from lora_api import GROUP, PLURAL, VERSION
from lora_api.manifest import sha256_hex
from lora_api.reasons import Reason
from lora_cli.captions import app

from .conftest import Job


@pytest.fixture
def job(make_job) -> Job:
    job = make_job(annotation={"mode": "Template", "approval": "Required"})
    assert job.run()[0] == 0
    return job


@pytest.fixture
def patches(job, httpserver: HTTPServer, tmp_path, monkeypatch) -> list[Any]:
    """Run an API server that has one job, and return the list of patches that it receives."""
    received: list[Any] = []
    metadata = {"namespace": job.namespace, "name": "statue", "uid": job.uid}
    resource = {"metadata": metadata, "spec": job.config().spec.to_wire()}
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{job.namespace}/{PLURAL}/statue"

    def patch(request: Request) -> Response:
        received.append(request.get_json(force=True))
        return Response(json.dumps(resource), content_type="application/json")

    httpserver.expect_request(path, method="GET").respond_with_json(resource)
    httpserver.expect_request(path, method="PATCH").respond_with_handler(patch)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": httpserver.url_for("").rstrip("/")}}],
        "users": [{"name": "test", "user": {"token": "a-token"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(file))
    return received


@pytest.fixture
def lora(job, patches, monkeypatch):
    """Return a function that runs `lora captions ...`."""
    credentials = job.running.seaweed.credentials
    monkeypatch.setenv("LORA_STORE_ENDPOINT", job.running.access.endpoint)
    monkeypatch.setenv("LORA_STORE_ACCESS_KEY", credentials.access_key)
    monkeypatch.setenv("LORA_STORE_SECRET_KEY", credentials.secret_key)

    def run(*arguments: object):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


def edit(folder: Path, old: str, new: str) -> bytes:
    path = folder / "metadata.jsonl"
    path.write_text(path.read_text().replace(old, new))
    return path.read_bytes()


def test_pull_edit_push_approve(job, lora, patches, tmp_path):
    name = f"{job.namespace}/statue"
    folder = tmp_path / "captions"
    pulled = lora("pull", name, folder, "--http")
    assert pulled.exit_code == 0, pulled.output
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"{n:03d}.png" for n in range(5)),
        "metadata.jsonl",
    ]

    data = edit(folder, "a photo of CUS statue", "a photo of CUS statue, in the garden")
    pushed = lora("push", name, folder, "--http")
    assert pushed.exit_code == 0, pushed.output
    assert sha256_hex(data) in pushed.output
    assert "duplicate" in pushed.output
    assert job.running.store.output.get(job.keys.captions) == data

    approved = lora("approve", name, folder)
    assert approved.exit_code == 0, approved.output
    assert patches == [{"spec": {"annotation": {"approvedCaptions": sha256_hex(data)}}}]

    code, result = job.run()
    assert code == 0
    assert result.captions.sha256 == sha256_hex(data)


WRONG = [
    ("000.png", "other.png", "not an image of this job"),
    ("000.png", "../../other.png", "relative key"),
    ("001.png", "000.png", "two captions"),
    ("a photo of CUS statue", " ", "empty"),
    ('"text"', '"txt"', "line 1: text"),
    ("}", "", "line 1"),
]


@pytest.mark.parametrize(("old", "new", "words"), WRONG)
def test_a_broken_edit_is_refused_at_the_push(job, lora, tmp_path, old, new, words):
    name, folder = f"{job.namespace}/statue", tmp_path / "captions"
    lora("pull", name, folder, "--http")
    before = job.running.store.output.get(job.keys.captions)
    edit(folder, old, new)
    pushed = lora("push", name, folder, "--http")
    assert pushed.exit_code == 65
    assert words in pushed.output
    assert job.running.store.output.get(job.keys.captions) == before


@pytest.mark.parametrize(("old", "new", "words"), WRONG)
def test_a_broken_edit_in_the_store_is_named_by_the_stage(job, old, new, words):
    store = job.running.store.output
    store.put(job.keys.captions, store.get(job.keys.captions).replace(old.encode(), new.encode()))
    code, result = job.run()
    assert (code, result.reason) == (65, Reason.DATASET_INVALID)
    assert words in result.message


def test_a_row_that_a_reviewer_removed_removes_its_image(job):
    store = job.running.store.output
    store.put(job.keys.captions, b"".join(store.get(job.keys.captions).splitlines(keepends=True)[1:]))
    code, result = job.run()
    assert code == 0
    assert result.dataset.images == result.captions.total == 4


def test_what_is_missing_is_named(job, lora, tmp_path, monkeypatch):
    assert lora("pull", "/statue", tmp_path / "x", "--http").exit_code == 64
    assert lora("push", f"{job.namespace}/statue", tmp_path / "nothing", "--http").exit_code == 64
    monkeypatch.delenv("LORA_STORE_SECRET_KEY")
    missing = lora("pull", f"{job.namespace}/statue", tmp_path / "x", "--http")
    assert missing.exit_code == 64
    assert "LORA_STORE_SECRET_KEY" in missing.output
