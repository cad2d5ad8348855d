"""What a browser may send to start a job, and whose permissions are used."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from PIL import Image

from lora_api.dataset import AnnotationMode, Dataset, OnBadImage
from lora_api.draft import draft_manifest
from lora_api.status import Phase
from lora_trainer.demo.approval import read_resource
from lora_trainer.demo.jobs_api import JobsAccess, connect, user_token
from lora_trainer.demo.settings import read_settings
from lora_trainer.demo.start import JOB, find_start, last_start, read_manifest, start_locally
from lora_trainer.demo.uploads import (
    Upload,
    check_uploads,
    count_photographs,
    digest,
    find_count_problem,
    unreadable_images,
    write_uploads,
)
from lora_trainer.errors import BadConfigurationError, BadDataError, BadSetupError
from lora_trainer.local_runs import AT_REST, LOCK, is_interrupted

DRAFT = draft_manifest("red-bag", "CUS", "bag", AnnotationMode.TEMPLATE)


def changed(**fields: Any) -> str:
    return yaml.safe_dump({**DRAFT, **fields})


LEVELS = "bcdefghij"
"""Each level of a bomb has ten aliases of the one before it."""
LAUGHS = "a: &a [x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + chr(ord(name) - 1)] * 10)}]\n" for name in LEVELS
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join(['*' + chr(ord(name) - 1)] * 10)}]}}\n" for name in LEVELS
)


def test_the_draft_is_a_valid_manifest() -> None:
    assert read_manifest(yaml.safe_dump(DRAFT)) == DRAFT


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not valid YAML"),
        ("[]", "must have apiVersion"),
        (changed(kind="Pod"), "kind LoraTrainingJob"),
        (changed(metadata={"name": "../../etc"}), "metadata.name"),
        (changed(metadata={"name": "Red"}), "metadata.name"),
        (changed(metadata=None), "metadata.name"),
        (changed(spec={**DRAFT["spec"], "training": {"max_steps": 5}}), "did you mean maxSteps|max_steps"),
        (changed(spec=None), "spec"),
        (changed(metadata={"name": "a", "finalizers": ["x/y"]}), "remove finalizers"),
        (changed(metadata={"name": "a", "ownerReferences": []}), "remove ownerReferences"),
        ("a: &a [x]\nb: *a", "aliases"),
        (LAUGHS, "aliases"),
        (MERGES, "aliases"),
        ("[" * 20_000, "nested too deeply"),
        ("- " * 20_000, "nested too deeply"),
        ("a: " + "1" * 5_000, "JSON does not have"),
        ("a: 2026-99-99", "JSON does not have"),
        ("a: 2026-01-01", "JSON does not have"),
        ("a: !!set {b}", "JSON does not have"),
        ("a: .nan", "JSON does not have"),
        ("? [a]\n: b", "unhashable|not valid YAML"),
        ("!!python/object/apply:os.system [x]", "not valid YAML"),
        ("#" * (257 << 10), "at most 256 KiB"),
    ],
)
def test_a_manifest_that_cannot_run_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadConfigurationError, match=words):
        read_manifest(text)


@pytest.mark.parametrize("namespace", ["../../x", "a/b", "", 7, "A"])
def test_a_namespace_is_no_path(namespace: object) -> None:
    """It is the name of the folder of uploads."""
    document = {**DRAFT, "metadata": {"name": "red-bag", "namespace": namespace}}
    with pytest.raises(BadConfigurationError, match=r"metadata\.namespace"):
        read_manifest(yaml.safe_dump(document))


def test_files_that_are_no_images_are_found_by_their_content() -> None:
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    heic = b"\0\0\0\x18ftypheic" + bytes(100)
    files = [
        Upload("a.jpg", image.getvalue()),  # the content decides, as in the annotation stage
        Upload("b.heic", heic),
        Upload("notes.jpg", b"text"),
        Upload("empty.png", b""),
        Upload("a.txt", b"a caption"),
    ]
    assert unreadable_images(files) == ["notes.jpg", "empty.png"]


def test_masks_and_captions_are_not_counted_as_photographs() -> None:
    names = ["a.jpg", "a-mask.png", "a.txt", "b.heic", "metadata.jsonl"]
    assert count_photographs([Upload(name, b"") for name in names]) == 2
    assert count_photographs([Upload("a.txt", b"")]) == 0


@pytest.mark.parametrize(
    ("photographs", "settings", "words"),
    [
        (5, {}, ""),
        (20, {}, ""),
        (4, {}, "add 1, or lower dataset.minImages"),
        (40, {}, "the job takes 5 to 20: remove 20, or raise dataset.maxImages"),
        (40, {"max_images": 40}, ""),
        (40, {"on_bad_image": OnBadImage.SKIP}, ""),
    ],
)
def test_a_number_of_photographs_that_the_job_refuses_is_reported(
    photographs: int, settings: dict[str, Any], words: str
) -> None:
    problem = find_count_problem(photographs, Dataset(prefix="photos/", **settings))
    assert words in problem
    assert bool(problem) == bool(words)


def test_the_job_that_was_uploaded_last_is_known_after_a_restart(tmp_path: Path) -> None:
    assert last_start(tmp_path / "missing") is None
    for age, name in enumerate(("new", "old")):
        folder = tmp_path / "studio" / name
        folder.mkdir(parents=True)
        (folder / JOB).write_text("{}")
        os.utime(folder / JOB, (1000 - age, 1000 - age))
    assert last_start(tmp_path) == ("studio", "new")


def test_a_killed_run_is_distinguished_from_a_running_one(tmp_path: Path) -> None:
    assert is_interrupted(tmp_path, Phase.TRAINING)
    with FileLock(tmp_path / LOCK):
        assert not is_interrupted(tmp_path, Phase.TRAINING)
    assert is_interrupted(tmp_path, Phase.TRAINING)
    assert not any(is_interrupted(tmp_path, phase) for phase in AT_REST)


def test_a_restarted_page_knows_the_jobs_that_it_started(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('ran', *sys.argv[1:])"]
    first = start_locally(command, tmp_path, DRAFT, [Upload("a.png", b"1")])
    assert first.process is not None
    assert first.process.wait(60) == 0
    again = find_start(command, tmp_path, "default", "red-bag")
    assert again is not None
    assert (again.command, again.output) == (first.command, first.output)
    assert not again.running
    assert not again.ended, "the page has not run it"
    third = again.run()
    assert third.process is not None
    assert third.process.wait(60) == 0
    assert third.output == first.output
    for namespace, name in (("default", "other"), ("..", "default"), ("default", "../default/red-bag")):
        assert find_start(command, tmp_path, namespace, name) is None


def test_a_job_is_stopped_by_a_signal(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    start = start_locally(command, tmp_path, DRAFT, [Upload("a.png", b"1")])
    assert start.process is not None
    assert start.running
    assert not start.stopping
    start.stop()
    assert start.stopping
    assert start.process.wait(60) == -signal.SIGTERM
    assert start.killed
    assert start.ended


def test_a_status_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "status.yaml"
    file.write_bytes(b"metadata: {uid: x\xff}\nspec: {}\n")
    assert read_resource(file) is None
    file.write_text("metadata: {uid: x}\nspec: {}\n")
    assert read_resource(file) == {"metadata": {"uid": "x"}, "spec": {}}
    assert read_resource(tmp_path / "absent") is None


def test_names_of_uploads_are_names_only() -> None:
    files = check_uploads(
        [Upload("../../a/1.JPG", b"x"), Upload("C:\\b\\2.png", b"y"), Upload("1.txt", b"z")]
    )
    assert [file.name for file in files] == ["1.JPG", "2.png", "1.txt"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "no image"),
        (["a.txt"], "no image"),
        (["a.png", "x/a.png"], "two files are named a.png"),
        (["a.png", "run.sh"], "run.sh is neither"),
        (["a.png", ".png"], "cannot be used"),
        (["a\n.png"], "cannot be used"),
        (["\u202egnp.exe.png"], "cannot be used"),
        (["\ud800.png"], "cannot be used"),
        (["a" * 300 + ".png"], "cannot be used"),
        (["a.png"] * 201, "at most 200 files"),
    ],
)
def test_uploads_that_cannot_be_used_are_refused(names: list[str], words: str) -> None:
    with pytest.raises(BadDataError, match=words):
        check_uploads([Upload(name, b"") for name in names])


def test_a_folder_holds_the_last_upload_alone(tmp_path: Path) -> None:
    write_uploads(tmp_path / "x", [Upload("a.png", b"1"), Upload("b.png", b"2")])
    write_uploads(tmp_path / "x", [Upload("b.png", b"3")])
    assert {file.name: file.read_bytes() for file in (tmp_path / "x").iterdir()} == {"b.png": b"3"}


def test_other_images_get_another_prefix() -> None:
    one, two = Upload("a.png", b"1"), Upload("b.png", b"2")
    assert digest([one, two]) == digest([two, one])
    assert len({digest([one]), digest([two]), digest([one, two]), digest([Upload("a.png", b"2")])}) == 4


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({}, ""),
        ({"Authorization": "Bearer abc"}, "abc"),
        ({"authorization": "bearer  abc "}, "abc"),
        ({"Authorization": "Basic abc"}, ""),
        ({"Authorization": "Basic abc", "X-Forwarded-Access-Token": "def"}, "def"),
    ],
)
def test_the_token_of_the_user_is_the_proxys(headers: dict[str, str], token: str) -> None:
    assert user_token(headers) == token


def test_a_user_has_the_users_token_and_never_the_pods(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("pod\n")
    cluster = {
        "KUBERNETES_SERVICE_HOST": "fd00::1",
        "KUBERNETES_SERVICE_PORT": "6443",
        "LORA_KUBERNETES_TOKEN": str(tmp_path / "token"),
    }
    assert connect(JobsAccess.USER, "", cluster) is None
    user = connect(JobsAccess.USER, "mine", cluster)
    assert user is not None
    assert (user.token, user.host) == ("mine", "https://[fd00::1]:6443")
    pod = connect(JobsAccess.SERVICE_ACCOUNT, "ignored", cluster)
    assert pod is not None
    assert pod.token == "pod"
    with pytest.raises(BadSetupError, match="the token contains") as refused:
        connect(JobsAccess.USER, "mine\r\nx: y", cluster)
    assert "mine" not in str(refused.value)
    with pytest.raises(BadSetupError, match="does not run in a cluster"):
        connect(JobsAccess.USER, "mine", {})


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    profile = {"store": {"endpoint": "127.0.0.1:9", "secure": False}, "models": {}}
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"profiles": {"default": profile}}))
    return {"LORA_PROFILES": str(tmp_path / "profiles.yaml"), "LORA_STORE_SECRET": str(tmp_path), **more}


def test_a_read_only_page_starts_no_jobs(tmp_path: Path) -> None:
    local = {"LORA_RUN": '["lora", "run"]', "LORA_UPLOADS": "x"}
    cluster = {"LORA_JOBS_ACCESS": "user", "LORA_JOBS_NAMESPACES": "studio, atelier"}
    assert not read_settings(environment(tmp_path)).starts_jobs
    for settings in (local, cluster):
        assert read_settings(environment(tmp_path, **settings)).starts_jobs
        assert not read_settings(environment(tmp_path, **settings, LORA_READ_ONLY="true")).starts_jobs
    assert read_settings(environment(tmp_path, **cluster)).namespaces == ("studio", "atelier")


@pytest.mark.parametrize(
    "settings", [{"LORA_JOBS_ACCESS": "everyone"}, {"LORA_JOBS_ACCESS": "user"}, {"LORA_RUN": '["lora"]'}]
)
def test_incomplete_settings_are_named(tmp_path: Path, settings: dict[str, str]) -> None:
    with pytest.raises(BadConfigurationError, match="LORA_"):
        read_settings(environment(tmp_path, **settings))
