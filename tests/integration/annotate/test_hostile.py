"""Hostile uploads through the whole stage, in a separate process as in a pod."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_api.exits import ExitCode
from lora_api.job import JobSpec
from lora_api.keys import JobKeys
from lora_api.reasons import Reason
from lora_api.stages import decode_result
from lora_trainer.annotate.intake import check_intake, clean_dataset
from lora_trainer.annotate.listing import list_dataset
from lora_trainer.errors import BadDataError, NoInputError
from lora_trainer.store import Store, StoredObject
from tests.conftest import make_spec
from tests.support.image_files import CORPUS

QUICK = {name: case for name, case in CORPUS.items() if not name.startswith(("large", "bomb"))}
IGNORED = (".DS_Store", "Thumbs.db", "._plain.jpg", "__MACOSX/plain.jpg")


def files_under(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_the_corpus_has_its_designed_outcomes_and_leaves_no_file_behind(make_job, tmp_path):
    job = make_job(0, annotation={"mode": "Template"})
    job.spec["dataset"] = {"prefix": job.prefix, "onBadImage": "Skip", "maxImages": 100}
    for name, case in QUICK.items():
        job.upload(name, case.make())
    for name in IGNORED:
        job.upload(name, b"ignored")

    home = tmp_path / "home"
    home.mkdir()
    path = job.folder / "stage.json"
    path.write_text(job.config().model_dump_json(by_alias=True))
    environment = os.environ | {"HOME": str(home), "TMPDIR": str(home)}
    command = [sys.executable, "-m", "lora_trainer", "annotate", "--config", path]
    assert subprocess.run(command, cwd=home, env=environment, check=False).returncode == ExitCode.OK
    assert files_under(home) == set()
    assert files_under(job.folder) == {Path("stage.json"), Path("termination-log")}

    result = decode_result((job.folder / "termination-log").read_text())
    report = json.loads(job.running.store.output.get(job.keys.dataset_report))
    taken = {image["key"].removeprefix(job.prefix): image for image in report["images"]}
    skipped = {item["key"].removeprefix(job.prefix): item["reason"] for item in report["skipped"]}
    assert set(taken) == {name for name, case in QUICK.items() if not case.refused}
    assert set(skipped) == {name for name, case in QUICK.items() if case.refused} | set(IGNORED)
    for name, image in taken.items():
        assert image["fileName"][:3].isdigit()
        assert QUICK[name].remark in "; ".join(image["warnings"]), name
    assert any("a copy of" in warning for warning in taken["plain.png"]["warnings"])
    assert len((job.folder / "termination-log").read_bytes()) <= 4096
    assert result.dataset.images == len(taken)


ODD_KEYS = [
    "über/фото 1.JPG",
    "a b\tc;rm -rf $(HOME).jpg",
    "'\"<script>&?#%2e%2e%2f.jpg",
    "🐕" * 40 + ".jpg",
    "x" * 200 + ".jpg",
]


def test_odd_keys_become_numbers(make_job, small_photographs):
    job = make_job(0, annotation={"mode": "Template"})
    keys = {job.upload(name, data) for name, data in zip(ODD_KEYS, small_photographs, strict=True)}
    code, _ = job.run()
    assert code == 0
    report = json.loads(job.running.store.output.get(job.keys.dataset_report))
    assert {image["key"] for image in report["images"]} == keys
    assert [image["fileName"] for image in report["images"]] == [f"{n:03d}.png" for n in range(5)]


class Stub:
    """A bucket with keys that most S3 servers refuse."""

    name = "datasets"

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.listed: list[int] = []

    def uri(self, key: str) -> str:
        return f"s3://datasets/{key}"

    def list(self, prefix: str, limit: int) -> list[StoredObject]:
        self.listed.append(limit)
        found = [StoredObject(k, len(v), "etag") for k, v in self.objects.items() if k.startswith(prefix)]
        return found[:limit]

    def get(self, key: str) -> bytes:
        return self.objects[key]


ESCAPES = [
    "a/../../../etc/passwd.jpg",
    "a//etc/shadow.jpg",
    "a/nul\x00.jpg",
    "a/\\..\\x.jpg",
    "a/" + "y" * 1000,
]


def test_keys_with_parent_folders_never_become_file_names(
    running_store, small_photographs, uid, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = files_under(tmp_path)
    bucket = Stub(dict(zip(ESCAPES, small_photographs, strict=True)))
    store = Store(running_store.access)
    store.input = bucket
    keys = JobKeys("studio", "statue", uid)
    spec = JobSpec.model_validate(make_spec(dataset={"prefix": "a/"}))
    intake = clean_dataset(store, keys, spec, list_dataset(bucket, "a/"))
    assert [image.entry.key for image in intake.images] == [keys.image(n) for n in range(5)]
    assert files_under(tmp_path) == before


def test_ten_thousand_keys_are_not_read(uid):
    bucket = Stub({f"a/{n:05d}.jpg": b"" for n in range(10_000)})
    with pytest.raises(BadDataError, match="more than 1000 objects"):
        list_dataset(bucket, "a/")
    assert bucket.listed == [1001]


def test_a_prefix_with_ignored_files_only_has_no_images():
    with pytest.raises(NoInputError, match="no images lie under") as error:
        list_dataset(Stub({"a/.DS_Store": b"", "a/notes.txt": b""}), "a/")
    assert error.value.reason is Reason.DATASET_INVALID


def test_a_file_above_64_mb_is_not_downloaded(running_store, uid):
    class Huge(Stub):
        def list(self, prefix, limit):
            return [StoredObject("a/huge.jpg", 65 << 20, "etag")]

        def get(self, key):
            raise AssertionError("it was fetched")

    store = Store(running_store.access)
    store.input = Huge({})
    spec = JobSpec.model_validate(make_spec(dataset={"prefix": "a/"}))
    with pytest.raises(BadDataError, match="larger than 64 MB"):
        check_intake(
            spec,
            clean_dataset(store, JobKeys("studio", "statue", uid), spec, list_dataset(store.input, "a/")),
        )
