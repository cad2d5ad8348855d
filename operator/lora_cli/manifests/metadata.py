"""Check the metadata of a manifest for everything that the API server would refuse."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from lora_api.fields import is_label_key, is_subdomain
from lora_api.job import InvalidResourceError, check_name, check_namespace

from .problems import Problem, quote_hint, show, type_name, unknown_fields
from .reader import Path

METADATA = {
    "name": str, "generateName": str, "namespace": str, "labels": dict, "annotations": dict, "finalizers": list,
    "ownerReferences": list, "managedFields": list, "uid": str, "resourceVersion": str, "generation": int,
    "creationTimestamp": str, "deletionTimestamp": str, "deletionGracePeriodSeconds": int, "selfLink": str,
}  # fmt: skip
"""Fields of metadata and their types."""
OWNER = {
    "apiVersion": str, "kind": str, "name": str, "uid": str, "controller": bool, "blockOwnerDeletion": bool,
}  # fmt: skip
"""Fields of an owner reference and their types. Those of text are required."""
TIMESTAMP = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[-+][0-9]{2}:[0-9]{2})"
)
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
MAX_ANNOTATIONS = 256 << 10
"""Bytes of all annotations together, a limit of Kubernetes."""


def check_metadata(metadata: Any) -> Iterator[Problem]:
    """Yield the problems of the metadata of a job."""
    root: Path = ("metadata",)
    if not isinstance(metadata, Mapping):
        yield Problem(root, "is missing" if metadata is None else "must be a mapping of fields")
        return
    yield from unknown_fields(metadata, METADATA, root)
    for name, kind in METADATA.items():
        value = metadata.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            yield Problem(
                (*root, name), f"must be {type_name(kind())}, not {show(value)}{quote_hint(value, kind)}"
            )
    if metadata.get("name") is None:
        yield Problem((*root, "name"), "is missing")
    # An empty namespace is valid; an empty name is not.
    for name, check in (("name", check_name), ("namespace", check_namespace)):
        value = metadata.get(name)
        if isinstance(value, str) and (value or name == "name"):
            try:
                check(value, name)
            except InvalidResourceError as error:
                yield Problem((*root, name), f"{show(value)} {str(error).partition(': ')[2]}")
    yield from _check_labels(metadata)
    yield from _check_generated(metadata)
    yield from _check_finalizers(metadata.get("finalizers"))
    yield from _check_owners(metadata.get("ownerReferences"))


def _check_generated(metadata: Mapping[str, Any]) -> Iterator[Problem]:
    """Check the fields that the API server writes. A manifest that was read from a cluster has them."""
    for field in ("creationTimestamp", "deletionTimestamp"):
        value = metadata.get(field)
        if isinstance(value, str) and not _is_timestamp(value):
            message = f"{show(value)} must be a time such as 2026-01-31T12:00:00Z; remove it"
            yield Problem(("metadata", field), message)
    prefix = metadata.get("generateName")
    # The API server adds letters, so the prefix may end with a hyphen.
    if isinstance(prefix, str) and prefix and not is_subdomain(re.sub("(?<=.)-$", "a", prefix)):
        message = f"{show(prefix)} must be lower-case letters, digits, '-' and '.'; remove it"
        yield Problem(("metadata", "generateName"), message)


def _is_timestamp(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return TIMESTAMP.fullmatch(text) is not None


def _check_finalizers(finalizers: Any) -> Iterator[Problem]:
    for index, name in enumerate(finalizers if isinstance(finalizers, list) else ()):
        if not isinstance(name, str) or not is_label_key(name):
            message = (
                f"{show(name)} must be [PREFIX/]NAME, at most 63 letters, digits, '-', '_' and '.'"
                f"{quote_hint(name, str)}"
            )
            yield Problem(("metadata", "finalizers", index), message)


def _check_owners(owners: Any) -> Iterator[Problem]:
    for index, owner in enumerate(owners if isinstance(owners, list) else ()):
        root: Path = ("metadata", "ownerReferences", index)
        if not isinstance(owner, Mapping):
            yield Problem(root, f"must be a mapping of fields, not {type_name(owner)}")
            continue
        yield from unknown_fields(owner, OWNER, root)
        for name, kind in OWNER.items():
            value = owner.get(name)
            if value is not None and not isinstance(value, kind):
                message = f"must be {type_name(kind())}, not {show(value)}{quote_hint(value, kind)}"
                yield Problem((*root, name), message)
            elif kind is str and not value:
                yield Problem((*root, name), "is missing")


def _check_labels(metadata: Mapping[str, Any]) -> Iterator[Problem]:
    for field in ("labels", "annotations"):
        values = metadata.get(field)
        if not isinstance(values, dict):
            continue
        for key, value in values.items():
            path = ("metadata", field, key)
            # Only the keys of labels tell upper and lower case apart.
            if not is_label_key(key if field == "labels" else key.lower()):
                yield Problem(
                    path, "the key must be [PREFIX/]NAME, at most 63 letters, digits, '-', '_' and '.'"
                )
            if value is not None and not isinstance(value, str):
                yield Problem(path, f"must be text, not {show(value)}{quote_hint(value, str)}")
            elif field == "labels" and not LABEL_VALUE.fullmatch(value or ""):
                yield Problem(path, f"{show(value)} must be at most 63 letters, digits, '-', '_' and '.'")
        if field == "annotations":
            texts = [text for pair in values.items() for text in pair if isinstance(text, str)]
            size = sum(len(text.encode(errors="replace")) for text in texts)
            if size > MAX_ANNOTATIONS:
                yield Problem(
                    ("metadata", field), f"must be at most {MAX_ANNOTATIONS} bytes; they are {size}"
                )
