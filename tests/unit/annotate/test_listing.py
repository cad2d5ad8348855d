"""What lies beside images: each file is an image, a caption, or ignored by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.annotate.listing import list_dataset
from lora_trainer.annotate.sources import LocalFolder
from lora_trainer.store import StoredObject

IGNORED = [
    "IMG_1.MOV", "IMG_1.AAE", "IMG_1.xmp", "meta_lat.json", "IMG_1.npz", "README.md", "Icon\r", "ehthumbs.db", "Thumbs.db",
    "desktop.ini", ".DS_Store", "._IMG_1.jpg", "@eaDir/IMG_1.jpg/SYNOPHOTO_THUMB_XL.jpg", ".thumbnails/IMG_1.jpg",
    ".Trash-1000/files/IMG_1.jpg", "__MACOSX/._IMG_1.jpg", "$RECYCLE.BIN/x.jpg", "#recycle/x.jpg", "lost+found/x.jpg",
    "reg/1_statue/0001.png", "reg_images/0001.png", "IMG_1.mp4", "IMG_1.THM", "link.url", "a.safetensors", "IMG_1.DNG",
    ".ipynb_checkpoints/IMG_1-checkpoint.jpg", ".dropbox.cache/x.jpg", "log/events.out",
    "IMG_1.jpg:Zone.Identifier", "~$notes.docx", "notes.docx", "IMG_1.SRT", "IMG_1.LRF", "a.acr", "cat.lrcat", "#snapshot/a.jpg",
    "IMG_1.jpg_original", "b.jpg~", "IMG_2.HEIC.icloud", "[Originals]/a.jpg", "@eaDir/a.jpg@SynoEAStream",
    "ZbThumbnail.info", "SHA256SUMS", "IMG_1.md5", "LICENSE", "Photos Previews.lrdata/0/a.lrprev", "Temporary Items/a.jpg",
    "Network Trash Folder/a.jpg", "cat.cocatalogdb", "IMG_1-condlabel.png", "memo.mp3", "rename.py", "IMG_1.jpg.torrent",
    "IMG_1.JPG.supplemental-metadata.json", "IMG_1.JPG(1).json", "captions.json", "captions.tsv", "metadata.parquet",
]  # fmt: skip
IMAGES = [
    "IMG_1.jpg",
    "10_cus statue/a.png",
    "scan",
    "sub/b.HEIC",
    "regal/c.jpg",
    "register.png",
    "only.dng",
    "icons/d.jpg",
    "Screenshot 2026-01-02 10:30:00.png",
    "cat_original.jpg",
    "the_original",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in [*IGNORED, *IMAGES, "IMG_1.txt", "metadata.jsonl", "metadata.csv", "IMG_1.caption"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


class EveryFile(LocalFolder):
    """A folder with its hidden folders, as an upload by another program puts them into the store."""

    def list(self, prefix: str, limit: int) -> list[StoredObject]:
        files = sorted(path for path in self._folder.rglob("*") if path.is_file())
        return [StoredObject(path.relative_to(self._folder).as_posix(), 1, "") for path in files][:limit]


def test_files_are_sorted_by_name(folder):
    listing = list_dataset(EveryFile(folder), "")
    assert [item.key for item in listing.images] == sorted(IMAGES)
    # A control character in a key is replaced where people read it.
    assert sorted(item.key for item in listing.ignored) == sorted(
        name.replace("\r", "\ufffd") for name in IGNORED
    )
    assert {item.key for item in listing.captions} == {
        "IMG_1.txt",
        "IMG_1.caption",
        "metadata.jsonl",
        "metadata.csv",
    }


def test_hidden_folders_of_this_machine_are_left_out(folder):
    """A job reads the same images and captions from the store, to which they are not uploaded."""
    stored, local = list_dataset(EveryFile(folder), ""), list_dataset(LocalFolder(folder), "")
    assert [item.key for item in local.images] == [item.key for item in stored.images]
    assert [item.key for item in local.captions] == [item.key for item in stored.captions]
    left_out = {item.key for item in stored.ignored} - {item.key for item in local.ignored}
    assert left_out == {name for name in IGNORED if name.startswith(".") and "/" in name}


def test_tables_of_captions_that_are_not_read_are_warned_about(folder):
    warned = [warning for warning in list_dataset(LocalFolder(folder), "").warnings if "a table" in warning]
    names = [warning.partition(":")[0] for warning in warned]
    assert names == ["captions.json", "captions.tsv", "meta_lat.json", "metadata.parquet"]
    assert all("metadata.jsonl" in warning for warning in warned)


def test_folder_names_of_another_trainer_are_reported(folder):
    warnings = list_dataset(LocalFolder(folder), "").warnings
    assert any("10_cus statue" in warning and "repeats" in warning for warning in warnings)
    assert any("2 regularisation images" in warning for warning in warnings)
