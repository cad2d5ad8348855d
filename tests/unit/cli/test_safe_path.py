"""Where a download may be written, whatever the models of a manifest have let through."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_api.manifest import FileEntry
from lora_cli.captions import _safe_name
from lora_cli.errors import UsageError
from lora_cli.transfer import DownloadError, safe_path

ROOT = "studio/statue/uid/attempt-1/"


def entry(key: str, digest: str = "a" * 64) -> FileEntry:
    """An entry that no validator has seen."""
    return FileEntry.model_construct(key=key, bytes=1, sha256=digest)


@pytest.mark.parametrize(
    "key",
    [
        "/etc/cron.d/evil",
        "elsewhere/evil",
        "studio/statue/uid/attempt-1",
        f"{ROOT}",
        f"{ROOT}/etc/passwd",
        f"{ROOT}../evil",
        f"{ROOT}sub/../../evil",
        f"{ROOT}./evil",
        f"{ROOT}sub//evil",
        f"{ROOT}sub/",
        f"{ROOT}..\\evil",
        f"{ROOT}C:\\evil",
        f"{ROOT}nul\x00.png",
        f"{ROOT}line\nbreak",
        f"{ROOT}\x1b[2Jevil",
        f"{ROOT}\u202egnp.exe",
        f"{ROOT}\u009b31m",
        f"{ROOT}.bashrc",
        f"{ROOT}.ssh/authorized_keys",
    ],
)
def test_a_key_that_is_not_a_file_of_the_adapter_has_no_path(tmp_path: Path, key: str) -> None:
    with pytest.raises(DownloadError, match="nothing was written"):
        safe_path(tmp_path / "result", ROOT, entry(key))


@pytest.mark.parametrize("digest", ["", "../../evil", "A" * 64, "a" * 63, "a" * 64 + "\n", "a" * 65])
def test_a_digest_that_is_none_has_no_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(DownloadError, match="no valid sha256"):
        safe_path(tmp_path / "result", ROOT, entry(f"{ROOT}adapter.safetensors", digest))


def test_links_of_the_folder_lead_nowhere_else(tmp_path: Path) -> None:
    folder, outside = tmp_path / "result", tmp_path / "outside"
    outside.mkdir()
    folder.mkdir()
    (folder / "sub").symlink_to(outside)
    (folder / "file").symlink_to(outside / "file")
    for name in ("sub/x", "file"):
        with pytest.raises(DownloadError, match="leads out"):
            safe_path(folder, ROOT, entry(f"{ROOT}{name}"))
    assert safe_path(folder, ROOT, entry(f"{ROOT}a/b..b/c:d")) == folder / "a/b..b/c:d"


@pytest.mark.parametrize(
    "name", [".bashrc", "run.sh", "../000.png", "a/000.png", "0\n.png", "\u202egpj.png", "", "..", "Makefile"]
)
def test_captions_of_the_store_write_no_file_but_images(name: str) -> None:
    with pytest.raises(UsageError, match="nothing was written"):
        _safe_name(name)
    assert _safe_name("000.png") == "000.png"
