"""A reviewer's desk: a job's captions taken from the store, put back edited, and approved."""

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
    """metadata.jsonl as it lies there.

    Raises:
        NoInputError: when the job has none yet.
    """
    return _get(bucket, keys.captions)


def push_captions(bucket: Bucket, keys: JobKeys, data: bytes) -> list[CaptionRow]:
    """Put edited captions back; nothing is trained on them before they are approved.

    Raises:
        BadDataError: naming each line that cannot be trained on; then nothing is changed.
        NoInputError: when the job has no captions yet.
    """
    rows = validate_edited(data, _images(bucket, keys))
    bucket.put(keys.captions, data, "application/x-ndjson")
    return rows


def approve_captions(namespace: str, name: str, digest: str) -> None:
    """Let a job train on exactly the captions with this sha256, by kubectl.

    Raises:
        BadSetupError: with kubectl's own words.
    """
    kubectl(*approval_arguments(namespace, name, digest))


def approval_arguments(namespace: str, name: str, digest: str) -> list[str]:
    """What kubectl is told, to approve."""
    patch = {"spec": {"annotation": {"approvedCaptions": digest}}}
    return ["patch", RESOURCE, name, "-n", namespace, "--type=merge", "-p", json.dumps(patch)]


def kubectl(*arguments: str) -> str:
    """What kubectl prints.

    Raises:
        BadSetupError: with kubectl's own words, or when there is none.
    """
    try:
        done = subprocess.run(["kubectl", *arguments], check=True, capture_output=True, text=True)  # noqa: S607
    except FileNotFoundError:
        raise BadSetupError("kubectl is not there: install it, or edit the captions in the store") from None
    except subprocess.CalledProcessError as error:
        raise BadSetupError(error.stderr.strip() or f"kubectl ended with {error.returncode}") from None
    return done.stdout


def _images(bucket: Bucket, keys: JobKeys) -> Collection[str]:
    """The file names of a job's clean images."""
    manifest = CaptionsManifest.model_validate_json(_get(bucket, keys.captions_manifest))
    root = keys.image_named("")
    return [entry.key.removeprefix(root) for entry in manifest.files if entry.key.startswith(root)]


def _get(bucket: Bucket, key: str) -> bytes:
    try:
        return bucket.get(key)
    except ObjectMissingError:
        raise NoInputError(f"{bucket.uri(key)} is not there: the job has no captions yet") from None
