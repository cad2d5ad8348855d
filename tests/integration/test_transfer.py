"""Downloads of published adapters verify every byte and write nothing outside of the folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lora_api.keys import JobKeys
from lora_api.manifest import Manifest, sha256_hex
from lora_api.status import AdapterStatus
from lora_cli.errors import UsageError
from lora_cli.transfer import DownloadError, download_adapter, upload_folder
from lora_trainer.errors import BadDataError
from lora_trainer.store import Bucket
from tests.conftest import RunningStore

SHA256 = sha256_hex(b"x")


def publish(
    bucket: Bucket, keys: JobKeys, files: dict[str, bytes], forged: dict[str, str] | None = None
) -> str:
    """Store files and a manifest, and return the manifest's key.

    Args:
        forged: keys and hashes that the manifest names as well.
    """
    entries = [bucket.put(keys.attempt(1) + name, data).to_wire() for name, data in files.items()]
    entries += [{"key": key, "bytes": 1, "sha256": digest} for key, digest in (forged or {}).items()]
    adapter = AdapterStatus(
        uri=bucket.uri(f"{keys.attempt(1)}adapter.safetensors"),
        sha256=SHA256,
        bytes=1,
        format="diffusers",
        manifest_key=keys.manifest(1),
    )
    manifest = Manifest(
        namespace=keys.namespace, name=keys.name, uid=keys.uid, attempt=1, input_hash="", adapter=adapter, files=[],
        steps=1, seed=0, first_loss=1, final_loss=1, versions={},
    )  # fmt: skip
    bucket.put(keys.manifest(1), json.dumps({**manifest.to_wire(), "files": entries}).encode())
    return keys.manifest(1)


@pytest.mark.parametrize(
    "key",
    [
        "{root}//tmp/evil/authorized_keys",
        "{root}../../evil",
        "{root}sub/../../../evil",
        "{root}./adapter.safetensors",
        "/etc/cron.d/evil",
        "elsewhere/evil",
        "{root}a\\..\\evil",
        "{root}sub/",
        "{root}name\n\x1b[2Jevil",
        "{root}",
    ],
)
def test_a_forged_key_writes_nothing(running_store: RunningStore, tmp_path: Path, uid: str, key: str) -> None:
    bucket, keys = running_store.store.output, JobKeys("transfer", "forged", uid)
    manifest = publish(
        bucket, keys, {"adapter.safetensors": b"x"}, {key.format(root=keys.attempt(1)): SHA256}
    )
    folder = tmp_path / "home" / "result"
    with pytest.raises(DownloadError):
        download_adapter(bucket, manifest, folder)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("digest", ["", "../../evil", "A" * 64, SHA256 + "\n"])
def test_a_forged_hash_writes_nothing(
    running_store: RunningStore, tmp_path: Path, uid: str, digest: str
) -> None:
    bucket, keys = running_store.store.output, JobKeys("transfer", "forged", uid)
    key = f"{keys.attempt(1)}other"
    manifest = publish(bucket, keys, {"adapter.safetensors": b"x"}, {key: digest})
    with pytest.raises(DownloadError):
        download_adapter(bucket, manifest, tmp_path / "home" / "result")
    assert not (tmp_path / "home").exists()


def test_a_link_in_the_folder_is_not_followed_outside(
    running_store: RunningStore, tmp_path: Path, uid: str
) -> None:
    bucket, keys = running_store.store.output, JobKeys("transfer", "links", uid)
    manifest = publish(bucket, keys, {"adapter.safetensors": b"x", "previews/0.png": b"x"})
    outside, folder = tmp_path / "outside", tmp_path / "result"
    outside.mkdir()
    folder.mkdir()
    (folder / "previews").symlink_to(outside)
    for suffix in (".part", ".part.part"):
        (folder / f"adapter.safetensors{suffix}").symlink_to(outside / "written")
    with pytest.raises(DownloadError, match="leads out of"):
        download_adapter(bucket, manifest, folder)
    (folder / "previews").unlink()
    download_adapter(bucket, manifest, folder)
    assert list(outside.iterdir()) == []
    assert (folder / "previews/0.png").read_bytes() == b"x"
    assert (folder / "manifest.json").read_bytes() == bucket.get(manifest)


def test_a_file_that_was_changed_is_not_kept(running_store: RunningStore, tmp_path: Path, uid: str) -> None:
    bucket, keys = running_store.store.output, JobKeys("transfer", "changed", uid)
    manifest = publish(bucket, keys, {"adapter.safetensors": b"x"})
    bucket.put(f"{keys.attempt(1)}adapter.safetensors", b"y")
    with pytest.raises(DownloadError, match="its sha256 differs"):
        download_adapter(bucket, manifest, tmp_path / "result")
    assert not any(path.is_file() for path in (tmp_path / "result").rglob("*"))


def test_a_folder_is_mirrored_and_unchanged_files_are_not_sent(
    running_store: RunningStore, tmp_path: Path, uid: str
) -> None:
    bucket, prefix = running_store.store.input, f"mirror/{uid}/"
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_bytes(b"a" * (6 << 20))
    (folder / "sub/b").write_bytes(b"b")
    assert upload_folder(bucket, folder, prefix, mirror=True) == 2
    assert upload_folder(bucket, folder, prefix, mirror=True) == 0
    (folder / "sub/b").unlink()
    (folder / "c").write_bytes(b"c")
    assert upload_folder(bucket, folder, prefix, mirror=True) == 1
    assert [item.key for item in bucket.list(prefix, 9)] == [f"{prefix}a", f"{prefix}c"]


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("a\nb.jpg", UsageError, "rename it"),
        ("a\\b.jpg", UsageError, "rename it"),
        ("\x1b[2J.jpg", UsageError, "rename it"),
        ("a\udcff.jpg", BadDataError, "is not UTF-8: rename the file"),
    ],
)
def test_a_name_that_cannot_be_a_key_is_refused_before_anything_is_sent(
    running_store: RunningStore, tmp_path: Path, uid: str, name: str, error: type[Exception], words: str
) -> None:
    folder, prefix = tmp_path / "images", f"names/{uid}/"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(b"a")
    (folder / name).write_bytes(b"a")
    with pytest.raises(error, match=words):
        upload_folder(running_store.store.input, folder, prefix, mirror=True)
    assert running_store.store.input.list(prefix, 9) == []


def test_a_system_file_whose_name_cannot_be_a_key_is_left_out(
    running_store: RunningStore, tmp_path: Path, uid: str
) -> None:
    folder, prefix = tmp_path / "images", f"icon/{uid}/"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(b"a")
    (folder / "Icon\r").write_bytes(b"a")  # of macOS
    assert upload_folder(running_store.store.input, folder, prefix, mirror=True) == 1


def test_links_of_a_dataset_lead_to_images_only(
    running_store: RunningStore, tmp_path: Path, uid: str
) -> None:
    """An archive of photographs can hold a link to a private file, which would become a caption, or be uploaded."""
    bucket, prefix = running_store.store.input, f"links/{uid}/"
    folder, private, image = tmp_path / "images", tmp_path / "id_rsa", tmp_path / "library.jpg"
    folder.mkdir()
    private.write_bytes(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    image.write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "0.jpg").symlink_to(image)
    (folder / "1.jpg").symlink_to("0.jpg")
    os.mkfifo(folder / "2.jpg")  # reading it would not end
    (folder / "3.jpg").symlink_to("/dev/zero")
    assert upload_folder(bucket, folder, prefix, mirror=True, dataset=True) == 2
    (folder / "0.txt").symlink_to(private)
    with pytest.raises(UsageError, match="links to a file outside of"):
        upload_folder(bucket, folder, prefix, mirror=True, dataset=True)
    assert [item.key for item in bucket.list(prefix, 9)] == [f"{prefix}0.jpg", f"{prefix}1.jpg"]
