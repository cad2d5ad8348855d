"""A manifest describes one publication: its own adapter and the files beside it, nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from lora_api.keys import JobKeys
from lora_api.manifest import FileEntry, Manifest, ManifestError
from tests.support.builders import ADAPTER, KEYS

KEY = KEYS.manifest(1)
ADAPTER_FILE = FileEntry(key=ADAPTER.location[1], bytes=1000, sha256=ADAPTER.sha256)
REPORT = FileEntry(key=KEYS.report(1), bytes=1, sha256="c" * 64)
OTHER = JobKeys("studio", "victim", "another")


def manifest(**changes: Any) -> Manifest:
    return Manifest(
        namespace=KEYS.namespace, name=KEYS.name, uid=KEYS.uid, attempt=1, input_hash="", adapter=ADAPTER,
        files=[ADAPTER_FILE, REPORT], steps=1, seed=0, first_loss=0.1, final_loss=0.1, versions={},
    ).model_copy(update=changes)  # fmt: skip


def adapter(**changes: str) -> dict[str, Any]:
    return {"adapter": ADAPTER.model_copy(update=changes)}


def test_a_manifest_of_its_own_publication_is_accepted() -> None:
    manifest().check(KEY)
    manifest(**adapter(report_key=REPORT.key)).check(KEY)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"files": []}, "names no files"),
        ({"files": [REPORT]}, "does not name the adapter"),
        ({"files": [ADAPTER_FILE.model_copy(update={"sha256": "d" * 64})]}, "does not name the adapter"),
        ({"files": [ADAPTER_FILE, REPORT.model_copy(update={"key": OTHER.report(1)})]}, "not beside it"),
        ({"files": [ADAPTER_FILE, REPORT.model_copy(update={"key": KEYS.captions})]}, "not beside it"),
        ({"files": [ADAPTER_FILE, REPORT.model_copy(update={"key": KEYS.report(2)})]}, "not beside it"),
        (adapter(report_key=OTHER.report(1)), "not beside it"),
        (adapter(uri=f"s3://loras/{OTHER.attempt(1)}adapter.safetensors"), "not beside it"),
        (adapter(manifest_key=KEYS.manifest(2)), "not the key of this manifest"),
        ({"namespace": "victim"}, "not under the prefix"),
        ({"name": "victim"}, "not under the prefix"),
        ({"uid": "another"}, "not under the prefix"),
        ({"attempt": 2}, "not under the prefix"),
    ],
)
def test_a_forged_manifest_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        manifest(**changes).check(KEY)


@pytest.mark.parametrize(
    "key", [KEYS.manifest(2), OTHER.manifest(1), KEYS.captions_manifest, "manifest.json"]
)
def test_a_manifest_under_another_key_is_refused(key: str) -> None:
    with pytest.raises(ManifestError):
        manifest().check(key)
