"""Captions pulled, edited, pushed and approved, and what the step does with an edit."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lora_api.manifest import sha256_hex
from lora_api.reasons import Reason
from lora_trainer.annotate.cli import app

from .conftest import Job

KUBECTL = """#!{python}
import json, sys
from pathlib import Path
here = Path(__file__).parent
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "get":
    print((here / "job.json").read_text())
"""


@pytest.fixture
def job(make_job) -> Job:
    job = make_job(annotation={"mode": "Template", "approval": "Required"})
    assert job.run()[0] == 0
    return job


@pytest.fixture
def lora(job, tmp_path, monkeypatch):
    """Runs `lora captions ...` with a kubectl that knows the one job and notes what it was asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "kubectl"
    program.write_text(KUBECTL.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    metadata = {"namespace": job.namespace, "name": "statue", "uid": job.uid}
    spec = job.config().spec.to_wire()
    (folder / "job.json").write_text(json.dumps({"metadata": metadata, "spec": spec}))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
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


def test_pull_edit_push_approve(job, lora, tmp_path):
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
    last = json.loads((tmp_path / "bin" / "calls").read_text().splitlines()[-1])
    assert last[0] == "patch"
    assert json.loads(last[-1]) == {"spec": {"annotation": {"approvedCaptions": sha256_hex(data)}}}

    code, result = job.run()
    assert code == 0
    assert result.captions.sha256 == sha256_hex(data)


WRONG = [
    ("000.png", "../../other.png", "not an image of this job"),
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
    assert pushed.exit_code == 2
    assert words in pushed.output
    assert job.running.store.output.get(job.keys.captions) == before


@pytest.mark.parametrize(("old", "new", "words"), WRONG)
def test_a_broken_edit_in_the_store_is_named_by_the_step(job, old, new, words):
    store = job.running.store.output
    store.put(job.keys.captions, store.get(job.keys.captions).replace(old.encode(), new.encode()))
    code, result = job.run()
    assert (code, result.reason) == (65, Reason.DATASET_INVALID)
    assert words in result.message


def test_a_line_that_a_reviewer_took_out_is_an_image_less(job):
    store = job.running.store.output
    store.put(job.keys.captions, b"".join(store.get(job.keys.captions).splitlines(keepends=True)[1:]))
    code, result = job.run()
    assert code == 0
    assert result.dataset.images == result.captions.total == 4


def test_what_is_missing_is_said(job, lora, tmp_path, monkeypatch):
    assert lora("pull", "statue", tmp_path / "x", "--http").exit_code == 2
    assert lora("push", f"{job.namespace}/statue", tmp_path / "nothing", "--http").exit_code == 2
    monkeypatch.delenv("LORA_STORE_SECRET_KEY")
    missing = lora("pull", f"{job.namespace}/statue", tmp_path / "x", "--http")
    assert missing.exit_code == 2
    assert "LORA_STORE_SECRET_KEY" in missing.output
