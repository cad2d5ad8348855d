"""Find, verify and create entries of the cache."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadSetupError
from ..store import file_sha256
from .origin import MODEL, VAE, Contents, Origin

log = logging.getLogger(__name__)
CONTENTS = "contents.json"


@dataclass(frozen=True)
class CachedModel:
    """A complete model in the cache."""

    entry: Path
    """Folder of the entry."""
    contents: Contents

    @property
    def folder(self) -> Path:
        """Folder of the pipeline."""
        return self.entry / MODEL

    @property
    def vae_folder(self) -> Path | None:
        """Folder of the VAE that replaces the pipeline's own; None if there is none."""
        folder = self.entry / VAE
        return folder if folder.is_dir() else None


def find(origin: Origin, cache: Path) -> CachedModel | None:
    """Return the model if all its files exist with the right size, without writing and without network access.

    The contents of the files are not verified, because that takes longer than loading the model. `fill` can verify them.
    """
    return _read(_entry(origin, cache), reread=False)


def fill(origin: Origin, cache: Path, *, reread: bool = False) -> CachedModel:
    """Fetch a model into the cache, unless it is cached and its origin is unchanged.

    Concurrent processes wait for the one that fetches, and use its result.

    Args:
        reread: verify the sha256 of every cached file as well as its size.

    Raises:
        StageError: if the model cannot be fetched, or the file system does not support locks.
    """
    entry = _entry(origin, cache)
    entry.parent.mkdir(parents=True, exist_ok=True)
    with _locked(_beside(entry, ".lock")):
        cached = _read(entry, reread)
        if cached and origin.still_has(cached.contents.identity):
            return cached
        if entry.exists():
            log.warning("%s is out of date or damaged: fetching it again", entry)
        partial = _beside(entry, ".partial")
        partial.mkdir(exist_ok=True)
        contents = origin.fetch(partial)
        _finish(partial, contents)
        _put_in_place(partial, entry)
        return CachedModel(entry, contents)


def _entry(origin: Origin, cache: Path) -> Path:
    # The words are for people. The hash keeps entries apart whose addresses have the same words.
    digest = hashlib.sha256(origin.address.encode()).hexdigest()[:12]
    words = re.sub(r"[^A-Za-z0-9.]+", "-", origin.address).strip("-.")[:80]
    return cache / "models" / f"{words}-{digest}"


def _beside(entry: Path, ending: str) -> Path:
    return entry.with_name(entry.name + ending)


def _read(entry: Path, reread: bool) -> CachedModel | None:
    try:
        contents = Contents.model_validate_json((entry / CONTENTS).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    for file in contents.files:
        path = entry / file.key
        if not path.is_file() or path.stat().st_size != file.bytes:
            log.warning("%s does not have its size of %d bytes", path, file.bytes)
            return None
        if reread and file_sha256(path) != file.sha256:
            log.warning("%s does not match its sha256", path)
            return None
    return CachedModel(entry, contents)


def _finish(partial: Path, contents: Contents) -> None:
    """Remove files that are not part of the model, flush the others to disk, and write contents.json last."""
    names = {file.key for file in contents.files}
    for path in partial.rglob("*"):
        if path.is_file():
            if str(path.relative_to(partial)) in names:
                _flush(path)
            else:  # metadata of the hub's client, or a file that the origin no longer has
                path.unlink()
    (partial / CONTENTS).write_text(contents.model_dump_json(indent=1, by_alias=True))
    _flush(partial / CONTENTS)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _put_in_place(partial: Path, entry: Path) -> None:
    """Rename the partial folder to the entry. An old entry is moved aside first and removed last.

    A folder cannot be renamed over another one. If the process ends between the two renames, the entry is absent, and the
    next `fill` finishes the partial folder.
    """
    before = _beside(entry, ".before")
    shutil.rmtree(before, ignore_errors=True)
    if entry.exists():
        entry.rename(before)
    partial.rename(entry)
    shutil.rmtree(before, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock. The kernel releases it when the process ends, even if it is killed.

    filelock is not used, because it falls back to a soft lock on file systems without flock, and a killed process does
    not release a soft lock.

    Raises:
        BadSetupError: when the file system does not support locks.
    """
    with path.open("w") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another process is fetching this model: waiting")
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            raise BadSetupError(
                f"the file system of {path.parent} does not support file locks: mount it with locks, or use another volume"
            ) from error
        yield
