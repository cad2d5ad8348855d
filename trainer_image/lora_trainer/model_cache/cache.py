"""Entries of the cache: found, verified, made."""

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
    """A model that is whole."""

    entry: Path
    contents: Contents

    @property
    def folder(self) -> Path:
        """The pipeline's."""
        return self.entry / MODEL

    @property
    def vae_folder(self) -> Path | None:
        """Of a VAE that takes the place of the pipeline's own."""
        folder = self.entry / VAE
        return folder if folder.is_dir() else None


def find(origin: Origin, cache: Path) -> CachedModel | None:
    """The model, when every file of it is there in its full length; nothing is written and no one is asked.

    The bytes are not read: that would take longer than loading them, at every start. `fill` reads them.
    """
    return _read(_entry(origin, cache), reread=False)


def fill(origin: Origin, cache: Path, *, reread: bool = False) -> CachedModel:
    """Bring a model into the cache, unless it is there and its origin has no other by now.

    Of several processes at once one fetches, and the others find what it fetched.

    Args:
        reread: compare every byte of a model that is there with its sha256, not only the files' sizes.

    Raises:
        StepError: when the model cannot be had, or the cache's file system has no locks.
    """
    entry = _entry(origin, cache)
    entry.parent.mkdir(parents=True, exist_ok=True)
    with _locked(_beside(entry, ".lock")):
        found = _read(entry, reread)
        if found and origin.still_has(found.contents.identity):
            return found
        if entry.exists():
            log.warning("%s is out of date or harmed: it is fetched again", entry)
        partial = _beside(entry, ".partial")
        partial.mkdir(exist_ok=True)
        contents = origin.fetch(partial)
        _finish(partial, contents)
        _put_in_place(partial, entry)
        return CachedModel(entry, contents)


def _entry(origin: Origin, cache: Path) -> Path:
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
            log.warning("%s is not %d bytes long", path, file.bytes)
            return None
        if reread and file_sha256(path) != file.sha256:
            log.warning("%s does not have its sha256", path)
            return None
    return CachedModel(entry, contents)


def _finish(partial: Path, contents: Contents) -> None:
    """Leave what belongs to the model, on the disk, and say last what that is."""
    names = {file.key for file in contents.files}
    for path in partial.rglob("*"):
        if path.is_file():
            if str(path.relative_to(partial)) in names:
                _flush(path)
            else:  # a client's notes, or what an earlier try fetched and its origin has changed since
                path.unlink()
    (partial / CONTENTS).write_text(contents.model_dump_json(indent=1, by_alias=True))
    _flush(partial / CONTENTS)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _put_in_place(partial: Path, entry: Path) -> None:
    """What was there before goes only once the new one is whole."""
    before = _beside(entry, ".before")
    shutil.rmtree(before, ignore_errors=True)
    if entry.exists():
        entry.rename(before)
    partial.rename(entry)
    shutil.rmtree(before, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process at a time; given up by the kernel when that process ends, however it ends."""
    with path.open("w") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another process fetches this model: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            raise BadSetupError(
                f"the file system of {path.parent} has no file locks: mount it with them, or use another volume"
            ) from error
        yield
