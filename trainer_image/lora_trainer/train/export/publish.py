"""Publication of a result.

All files are read back, then the manifest is written and read back, and only then the pointer for reuse is written.
"""

from __future__ import annotations

import logging

from lora_api.keys import reuse_pointer
from lora_api.manifest import Manifest, ReusePointer, canonical_json, sha256_hex
from lora_api.reasons import Reason
from lora_api.stages import TrainConfig

from ...errors import UnavailableError
from ...store import Bucket, ObjectMissingError, ObjectTooLargeError, verified_manifest

log = logging.getLogger(__name__)
MAX_EARLIER_ATTEMPTS = 20
"""Number of earlier attempts in which `find_published` looks for a result."""


def commit(bucket: Bucket, config: TrainConfig, manifest: Manifest) -> None:
    """Read back all files of a manifest, write and read back the manifest, then write the pointer to it.

    Raises:
        UnavailableError: if the store does not return what was written.
    """
    key = config.keys.manifest(config.attempt)
    data = canonical_json(manifest.to_wire())
    for entry in manifest.files:
        if not bucket.holds(entry):
            raise _read_back_error(bucket, entry.key)
    if not bucket.holds(bucket.put(key, data, "application/json")):
        raise _read_back_error(bucket, key)
    _write_pointer(bucket, config, data, key)


def find_published(bucket: Bucket, config: TrainConfig) -> Manifest | None:
    """Find a manifest of this or an earlier attempt with the same inputs, all of whose files are in the store.

    A pod may be lost after it has published but before its result is read. The next one then need not train again.
    """
    first = max(1, config.attempt - MAX_EARLIER_ATTEMPTS)
    for attempt in range(config.attempt, first - 1, -1):
        if manifest := _read_published(bucket, config, attempt):
            return manifest
    return None


def _read_published(bucket: Bucket, config: TrainConfig, attempt: int) -> Manifest | None:
    key = config.keys.manifest(attempt)
    try:
        data = bucket.get(key)
    except (ObjectMissingError, ObjectTooLargeError):
        return None
    manifest = verified_manifest(bucket, data, key)
    if manifest is None or manifest.input_hash != config.input_hash:
        if attempt == config.attempt:
            log.warning("%s does not match its files or inputs: training again", bucket.uri(key))
            bucket.remove(key)
        return None
    _write_pointer(bucket, config, data, key)  # the pod that published may have been lost before this
    return manifest


def _write_pointer(bucket: Bucket, config: TrainConfig, manifest: bytes, manifest_key: str) -> None:
    """Write the pointer by which later jobs with the same input hash find the manifest."""
    pointer = ReusePointer(manifest_key=manifest_key, sha256=sha256_hex(manifest))
    key = reuse_pointer(config.namespace, config.input_hash)
    bucket.put(key, canonical_json(pointer.to_wire()), "application/json")


def _read_back_error(bucket: Bucket, key: str) -> UnavailableError:
    return UnavailableError(
        f"{bucket.uri(key)} does not read back as it was written", Reason.STORE_UNAVAILABLE
    )
