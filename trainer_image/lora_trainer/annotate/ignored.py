"""Recognition, by name, of files that cameras, operating systems, clouds and other trainers leave beside images."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

NAMES = frozenset(
    {
        "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon", "picasa.ini", "folder.jpg.db",
        "zbthumbnail.info", "md5sums", "sha1sums", "sha256sums", "_success", "license", "licence", "readme", "makefile",
    }
)  # fmt: skip
"""File names in lower case. The name of macOS's `Icon` ends with a carriage return, which is stripped."""

FOLDERS = frozenset(
    {
        "__macosx", "@eadir", "@recycle", "#recycle", "@recently-snapshot", "$recycle.bin", "system volume information",
        "lost+found", "lost.dir", "log", "logs", "thumbnails", "_thumbnails", "#snapshot", "[originals]",
        "network trash folder", "temporary items", "thevolumesettingsfolder", "_gsdata_", "ipod photo cache",
    }
)  # fmt: skip
"""Folder names in lower case, of operating systems, network storage and photograph programs."""

PLAIN_FOLDERS = frozenset({"log", "logs", "thumbnails", "_thumbnails"})
"""Those of `FOLDERS` that people may give to their own photographs."""

VIDEOS = {".mov", ".mp4", ".m4v", ".3gp", ".avi", ".mkv", ".webm", ".mts", ".m2ts", ".lrv", ".insv"}
SIDECARS = {
    ".aae",
    ".xmp",
    ".thm",
    ".dop",
    ".pp3",
    ".cos",
    ".cof",
    ".on1",
    ".gpx",
    ".exif",
    ".wav",
    ".m4a",
    ".opus",
    ".srt",
    ".lrf",
    ".ctg",
    ".acr",
    ".dxo",
    ".vrd",
    ".lrcat",
    ".cocatalogdb",
    ".pto",
    ".itc",
    ".ithmb",
    ".bup",
    ".ind",
    ".bdm",
    ".nomedia",
}
SOUNDS = {".mp3", ".aac", ".flac", ".ogg", ".wma", ".amr"}
TRAINERS = {
    ".npz",
    ".npy",
    ".pt",
    ".pth",
    ".ckpt",
    ".safetensors",
    ".bin",
    ".json",
    ".toml",
    ".yaml",
    ".yml",
    ".lock",
}
DOCUMENTS = {
    ".md",
    ".html",
    ".htm",
    ".url",
    ".webloc",
    ".lnk",
    ".ini",
    ".db",
    ".log",
    ".nfo",
    ".tmp",
    ".part",
    ".crdownload",
    ".bak",
    ".doc",
    ".docx",
    ".odt",
    ".rtf",
    ".pages",
    ".icloud",
    ".download",
    ".torrent",
    ".aria2",
    ".md5",
    ".sha1",
    ".sha256",
    ".sfv",
    ".ffs_db",
    ".vcf",
    ".ics",
    ".py",
    ".sh",
    ".bat",
    ".ps1",
    ".exe",
    ".dll",
    ".ttf",
    ".otf",
}
TABLES = {".tsv", ".parquet", ".arrow", ".xls", ".xlsx", ".ods", ".numbers"}
TABLE = "a table, which is not read: captions come from metadata.jsonl or metadata.csv"
PACKAGE = re.compile(r".+\.(?:lrdata|lrcat-data|cocatalog)", re.IGNORECASE)
"""Folder names of the previews that Lightroom and Capture One keep."""
LEFTOVER = re.compile(
    r"-condlabel\.png$|:(?:zone\.identifier|encryptable|smartscreen|com\.[\w.]+)$|\.\w+(?:~|_original)$"
)
"""The ends of names that Windows' data streams, editors, ExifTool and OneTrainer leave: IMG.jpg:Zone.Identifier,
IMG.jpg_original, IMG-condlabel.png."""
KINDS = {
    **dict.fromkeys(VIDEOS, "a video"),
    **dict.fromkeys(SOUNDS, "a sound"),
    **dict.fromkeys(SIDECARS, "a camera's or an editor's side file"),
    **dict.fromkeys(TRAINERS, "another program's file"),
    **dict.fromkeys(DOCUMENTS, "not an image"),
    **dict.fromkeys(TABLES, TABLE),
}
CAPTION_TABLE = re.compile(
    r"(?:captions?|metadata|meta_cap|meta_lat|meta_clean|dataset|prompts?)\.json", re.IGNORECASE
)
"""Names of JSON files in which other trainers and downloads keep captions."""

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".tif", ".tiff", ".bmp", ".avif"}
"""Suffixes of the files that count where the images of a folder with a plain name are not used."""

REGULARISATION_IMAGE = "a regularisation image"
"""The beginning of the reason for a file in a folder that `REGULARISATION` matches."""
REGULARISATION = re.compile(
    r"reg|regs|reg[_ -]?(?:images|imgs|data)|regulari[sz]ation(?:[_ -]?(?:images|data))?", re.IGNORECASE
)
"""Folder names of images of the class, in the data sets of other trainers."""
REPEATS = re.compile(r"(\d{1,4})_\S.*")
"""Folder names of kohya's trainer: the number of repeats of each image, then the concept."""


def ignored_reason(path: PurePosixPath) -> str:
    """Return why a file is not meant as an image or a caption; empty when it may be one.

    Args:
        path: the file's path under the prefix.
    """
    name = path.name.strip().lower()
    if name.startswith((".", "~$")) or name in NAMES or LEFTOVER.search(name):
        return "a system file"
    for folder in path.parts[:-1]:
        if (
            (folder.startswith(".") and folder.strip("."))
            or folder.lower() in FOLDERS
            or PACKAGE.fullmatch(folder)
        ):
            return f"in the system folder {folder}"
        if REGULARISATION.fullmatch(folder):
            return f"{REGULARISATION_IMAGE} in {folder}/, which is not used: set training.priorPreservation.enabled instead"
    return TABLE if CAPTION_TABLE.fullmatch(name) else KINDS.get(PurePosixPath(name).suffix, "")


def unused_folder(path: PurePosixPath) -> str:
    """Return the folder of `PLAIN_FOLDERS` because of which an image is ignored; empty for all other files."""
    if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
        return ""
    return next((folder for folder in path.parts[:-1] if folder.lower() in PLAIN_FOLDERS), "")


def repeats_of(path: PurePosixPath) -> str:
    """Return the name of the folder with repeats, in kohya's form, that a file is in; empty when it is in none."""
    return next((folder for folder in path.parts[:-1] if REPEATS.fullmatch(folder)), "")
