"""The review of a job's captions: reads them from the store, writes edited ones back, and approves them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection

from lora_api import GROUP, PLURAL
from lora_api.keys import JobKeys
from lora_api.manifest import CaptionsManifest

from ..errors import BadSetupError, NoInputError
from ..store import Bucket, ObjectMissingError
from .review import CaptionRow, validate_edited

RESOURCE = f"{PLURAL}.{GROUP}"


def read_captions(bucket: Bucket, keys: JobKeys) -> bytes:
    """Read a job's metadata.jsonl without validating it.

    Raises:
        NoInputError: when the job has none yet.
    """
    return _get(bucket, keys.captions)


def push_captions(bucket: Bucket, keys: JobKeys, data: bytes) -> list[CaptionRow]:
    """Write edited captions to the store. They are not used for training before they are approved.

    Raises:
        BadDataError: with lines that cannot be trained on. The store is not changed then.
        NoInputError: when the job has no captions yet.
    """
    rows = validate_edited(data, _images(bucket, keys))
    bucket.put(keys.captions, data, "application/x-ndjson")
    return rows


def approve_captions(namespace: str, name: str, digest: str) -> None:
    """Approve captions with kubectl, so that the job trains on them.

    Args:
        digest: `sha256:` and the hash of the captions, as `approvedCaptions` holds it.

    Raises:
        BadSetupError: with kubectl's error message.
    """
    kubectl(*approval_arguments(namespace, name, digest))


def approval_arguments(namespace: str, name: str, digest: str) -> list[str]:
    """Return the arguments of kubectl that approve captions."""
    patch = {"spec": {"annotation": {"approvedCaptions": digest}}}
    # Names come from keys in the store. Behind `RESOURCE/` and `--namespace=` kubectl cannot read one as an option,
    # such as --server.
    return [
        "patch",
        f"{RESOURCE}/{name}",
        f"--namespace={namespace}",
        "--type=merge",
        f"--patch={json.dumps(patch)}",
    ]


def kubectl(*arguments: str) -> str:
    """Run kubectl and return its output.

    Raises:
        BadSetupError: with kubectl's error message, or when kubectl is not installed.
    """
    try:
        done = subprocess.run(["kubectl", *arguments], check=True, capture_output=True, text=True)  # noqa: S607
    except FileNotFoundError:
        raise BadSetupError(
            "kubectl is not installed: install it, or edit the captions in the store"
        ) from None
    except subprocess.CalledProcessError as error:
        raise BadSetupError(error.stderr.strip() or f"kubectl ended with {error.returncode}") from None
    return done.stdout


def _images(bucket: Bucket, keys: JobKeys) -> Collection[str]:
    """Return the file names of a job's clean images."""
    manifest = CaptionsManifest.model_validate_json(_get(bucket, keys.captions_manifest))
    return [name for entry in manifest.files if (name := keys.image_name(entry.key))]


def _get(bucket: Bucket, key: str) -> bytes:
    try:
        return bucket.get(key)
    except ObjectMissingError:
        raise NoInputError(f"{bucket.uri(key)} does not exist: the job has no captions yet") from None
