"""Places that images and captions are read from: the store's input bucket, or a folder on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from ..errors import BadDataError
from ..store import StoredObject


class Source(Protocol):
    """A place with files: the store's input bucket or a local folder."""

    def uri(self, key: str) -> str:
        """Return a file's address for messages."""
        ...

    def list(self, prefix: str, limit: int) -> list[StoredObject]:
        """List at most `limit` files whose keys begin with the prefix."""
        ...

    def get(self, key: str) -> bytes:
        """Read a file.

        Raises:
            ObjectMissingError: when it does not exist in the store.
        """
        ...


class LocalFolder:
    """A folder on this machine. Keys are paths relative to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def uri(self, key: str) -> str:
        return str(self._folder / key)

    def list(self, prefix: str, limit: int) -> list[StoredObject]:
        objects: list[StoredObject] = []
        for path in walk_files(self._folder):
            key = path.relative_to(self._folder).as_posix()
            if key.startswith(prefix):
                objects.append(StoredObject(key, path.stat().st_size, ""))
                if len(objects) >= limit:
                    break
        return sorted(objects, key=lambda item: item.key)

    def get(self, key: str) -> bytes:
        return (self._folder / key).read_bytes()


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, without those in hidden folders.

    Hidden folders such as `.git` and `.lora`, the home of local runs, belong to programs. Links to folders are not
    followed.

    Raises:
        OSError: when a folder cannot be read.
        BadDataError: when a name is not UTF-8, so that no object can have it.
    """
    for place, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if not path.is_file():
                continue
            if not is_utf8(str(path.relative_to(folder))):
                raise BadDataError(f"the name of the file {name!a} in {place} is not UTF-8: rename the file")
            yield path


def is_utf8(name: str) -> bool:
    """Return whether a name can be encoded. Bytes of other encodings became surrogates when it was read."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _raise(error: OSError) -> None:
    raise error
