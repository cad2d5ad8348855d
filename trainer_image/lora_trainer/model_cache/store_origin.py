"""Models in the input bucket of the store: a pipeline's folder, an encoder's folder, or a checkpoint in one file."""

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
from .selection import encoder_files, pipeline_files
from .single_file import DOWNLOADS, convert

log = logging.getLogger(__name__)
MAX_FILES = 1000
FILE = "checkpoint.safetensors"
"""Local name of a checkpoint in one file while it is fetched."""


class StoreOrigin:
    """Origin of a model in the store."""

    def __init__(self, source: StoreModel, bucket: Bucket, kind: str = "pipeline") -> None:
        self._kind = kind
        self._source = source
        self._key = source.key
        self._prefix = source.key if source.is_file else source.key.rstrip("/") + "/"
        self._bucket = bucket

    @property
    def address(self) -> str:
        settings = self._source.checkpoint.identity()
        return f"store:{self._bucket.endpoint}/{self._bucket.name}/{self._prefix}{settings}"

    def still_has(self, identity: str) -> bool:
        return self._identity(self._list()) == identity

    def fetch(self, folder: Path) -> Contents:
        """Download every file and check its size. ETags are compared before and after, to detect a concurrent upload."""
        objects = self._list()
        files: list[FileEntry] = []
        for number, item in enumerate(objects, 1):
            name = item.key.removeprefix(self._prefix) or FILE  # empty for a checkpoint in one file
            log.info("%d of %d: %s, %.1f MB", number, len(objects), name, item.bytes / 1e6)
            path = folder / (DOWNLOADS if self._source.is_file else MODEL) / name
            self._bucket.get_file(item.key, path)
            size = path.stat().st_size
            files.append(FileEntry(key=f"{MODEL}/{name}", bytes=size, sha256=file_sha256(path)))
        identity = self._identity(objects)
        sizes = [file.bytes for file in files]
        if sizes != [item.bytes for item in objects] or not self.still_has(identity):
            raise UnavailableError(
                f"{self._bucket.uri(self._prefix)} changed while it was read: try again after its upload has finished",
                Reason.MODEL_UNAVAILABLE,
            )
        if self._source.is_file:
            files = self._convert(folder)
        return Contents(identity=identity, files=files)

    def _convert(self, folder: Path) -> list[FileEntry]:
        try:
            return convert(folder / DOWNLOADS / FILE, folder / MODEL, self._source.checkpoint)
        except BadConfigurationError as error:
            raise BadConfigurationError(f"the model {self._bucket.uri(self._key)} {error}") from None

    def _list(self) -> list[StoredObject]:
        """List the objects that the model consists of.

        Raises:
            BadConfigurationError: when the model does not exist or is not complete.
        """
        if self._source.is_file:
            # The listing also has longer keys that begin with this one.
            files = [item for item in self._bucket.list(self._key, MAX_FILES) if item.key == self._key]
            if not files:
                raise BadConfigurationError(f"the model {self._bucket.uri(self._key)} does not exist")
            return files
        objects = {
            item.key.removeprefix(self._prefix): item for item in self._bucket.list(self._prefix, MAX_FILES)
        }
        try:
            is_encoder = self._kind == "encoder"
            names = (
                encoder_files(objects) if is_encoder else pipeline_files(objects, variant="", own_vae=True)
            )
            return [objects[name] for name in names]
        except BadConfigurationError as error:
            raise BadConfigurationError(f"the model {self._bucket.uri(self._prefix)} {error}") from None

    def _identity(self, objects: list[StoredObject]) -> str:
        listing = "\n".join(f"{item.key} {item.etag}" for item in objects)
        digest = hashlib.sha256(f"{self._bucket.uri(self._prefix)}\n{listing}".encode()).hexdigest()
        return f"store:{self._key}{self._source.checkpoint.identity()}@{digest}"
