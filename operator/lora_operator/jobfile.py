"""A job in a YAML file, as people write it, with what they change of it on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lora_api.job import JobSpec, parse_job_document, parse_spec


class UsageError(RuntimeError):
    """The command line or a file on it is wrong; the message says what to write instead."""


@dataclass(frozen=True)
class JobFile:
    document: dict[str, Any]
    """The whole resource, as it is to be sent."""
    spec: JobSpec

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """Empty where the file names none."""
        return str(self.document["metadata"].get("namespace", ""))


def read_job(path: Path, assignments: list[str]) -> JobFile:
    """A job's file.

    Args:
        assignments: FIELD=VALUE under `spec`, the value in YAML.

    Raises:
        UsageError: when there is no such file, or it is no YAML.
        InvalidResourceError: naming every field that is wrong.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no YAML: {error}") from None
    _, spec = parse_job_document(document)
    if assignments:
        for assignment in assignments:
            _assign(document["spec"], assignment)
        spec = parse_spec(document["spec"])
    return JobFile(document, spec)


def _assign(spec: dict[str, Any], assignment: str) -> None:
    field, found, value = assignment.partition("=")
    if not found:
        raise UsageError(f"--set {assignment}: write FIELD=VALUE")
    *parents, last = field.split(".")
    for parent in parents:
        spec = spec.setdefault(parent, {})
        if not isinstance(spec, dict):
            raise UsageError(f"--set {assignment}: {parent} is a value and has no fields")
    spec[last] = yaml.safe_load(value)
