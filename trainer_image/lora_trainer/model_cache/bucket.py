"""Models that were uploaded to the store: a folder under a prefix of the input bucket."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from lora_api.manifest import FileEntry
from lora_api.profile import StoreModel
from lora_api.reasons import Reason

from ..errors import BadConfigurationError, UnavailableError
from ..store import Bucket, StoredObject, file_sha256
from .origin import MODEL, Contents
from .selection import pipeline_files

log = logging.getLogger(__name__)
MOST_FILES = 1000


class StoreOrigin:
    def __init__(self, source: StoreModel, bucket: Bucket) -> None:
        self._key = source.key
        self._prefix = source.key.rstrip("/") + "/"
        self._bucket = bucket

    @property
    def address(self) -> str:
        return f"store:{self._bucket.endpoint}/{self._bucket.name}/{self._prefix}"

    def still_has(self, identity: str) -> bool:
        return self._identity(self._list()) == identity

    def fetch(self, folder: Path) -> Contents:
        """Each file by its size; an upload that went on meanwhile is noticed by the ETags."""
        objects = self._list()
        files: list[FileEntry] = []
        for number, item in enumerate(objects, 1):
            name = item.key.removeprefix(self._prefix)
            log.info("%d of %d: %s, %.1f MB", number, len(objects), name, item.bytes / 1e6)
            path = folder / MODEL / name
            self._bucket.get_file(item.key, path)
            size = path.stat().st_size
            files.append(FileEntry(key=f"{MODEL}/{name}", bytes=size, sha256=file_sha256(path)))
        identity = self._identity(objects)
        sizes = [file.bytes for file in files]
        if sizes != [item.bytes for item in objects] or not self.still_has(identity):
            raise UnavailableError(
                f"{self._bucket.uri(self._prefix)} was changed while it was read: try again when its upload is over",
                Reason.MODEL_UNAVAILABLE,
            )
        return Contents(identity=identity, files=files)

    def _list(self) -> list[StoredObject]:
        """The objects that a pipeline is loaded from."""
        found = {
            item.key.removeprefix(self._prefix): item for item in self._bucket.list(self._prefix, MOST_FILES)
        }
        try:
            return [found[name] for name in pipeline_files(found, variant="", own_vae=True)]
        except BadConfigurationError as error:
            raise BadConfigurationError(f"the model {self._bucket.uri(self._prefix)} {error}") from None

    def _identity(self, objects: list[StoredObject]) -> str:
        listing = "\n".join(f"{item.key} {item.etag}" for item in objects)
        digest = hashlib.sha256(f"{self._bucket.uri(self._prefix)}\n{listing}".encode()).hexdigest()
        return f"store:{self._key}@{digest}"
