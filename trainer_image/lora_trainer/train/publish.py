"""Publication: every file, read back; the manifest, read back; only then the pointer for reuse."""

from __future__ import annotations

import logging

from lora_api.keys import reuse_pointer
from lora_api.manifest import Manifest, ReusePointer, canonical_json, sha256_hex
from lora_api.reasons import Reason
from lora_api.steps import TrainStep

from ..errors import UnavailableError
from ..store import Bucket, ObjectMissingError, verified_manifest

log = logging.getLogger(__name__)


def commit(bucket: Bucket, config: TrainStep, manifest: Manifest) -> None:
    """Read back all that a manifest names, write the manifest last and read it back, then point to it.

    Raises:
        UnavailableError: when the store does not give back what was written.
    """
    key = config.keys.manifest(config.attempt)
    data = canonical_json(manifest.to_wire())
    for entry in manifest.files:
        if not bucket.holds(entry):
            raise _unfaithful(bucket, entry.key)
    if not bucket.holds(bucket.put(key, data, "application/json")):
        raise _unfaithful(bucket, key)
    _point(bucket, config, data)


def find_published(bucket: Bucket, config: TrainStep) -> Manifest | None:
    """This attempt's manifest, when a run before this one left it complete and unharmed in the store."""
    key = config.keys.manifest(config.attempt)
    try:
        data = bucket.get(key)
    except ObjectMissingError:
        return None
    manifest = verified_manifest(bucket, data)
    if manifest is None or manifest.input_hash != config.input_hash:
        log.warning("%s names files that are not as it says: training again", bucket.uri(key))
        bucket.remove(key)
        return None
    _point(bucket, config, data)  # the run before may have died between the two
    return manifest


def _point(bucket: Bucket, config: TrainStep, manifest: bytes) -> None:
    pointer = ReusePointer(manifest_key=config.keys.manifest(config.attempt), sha256=sha256_hex(manifest))
    key = reuse_pointer(config.namespace, config.input_hash)
    bucket.put(key, canonical_json(pointer.to_wire()), "application/json")


def _unfaithful(bucket: Bucket, key: str) -> UnavailableError:
    return UnavailableError(
        f"{bucket.uri(key)} does not read back as it was written", Reason.STORE_UNAVAILABLE
    )
