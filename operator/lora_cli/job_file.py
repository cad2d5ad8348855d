"""Jobs in YAML or JSON files, with the changes of `--set` on the command line."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_api.job import JobSpec, parse_spec

from .console import warn
from .errors import UsageError
from .manifests.checks import find_problems, schema_at, without_nulls
from .manifests.hints import find_hints
from .manifests.problems import Problem
from .manifests.reader import Document, ManifestError, read_documents, resolve_scalar

STDIN = "-"


class InvalidManifestError(UsageError):
    """A manifest that the API server would refuse. The message has one line for each problem."""


@dataclass(frozen=True)
class JobFile:
    """A valid job."""

    document: dict[str, Any]
    """The whole resource, as it is sent to the API server."""
    spec: JobSpec
    source: str = ""
    """The file that the job was read from, for messages."""

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """The namespace in the file; empty if it names none."""
        return str(self.document["metadata"].get("namespace") or "")


def read_job(path: Path, assignments: Iterable[str] = ()) -> JobFile:
    """Read a file with exactly one job.

    Args:
        path: path of the file; `-` for stdin.
        assignments: FIELD=VALUE of each `--set`; FIELD is below `spec`, VALUE is YAML.

    Raises:
        UsageError: when the file cannot be read, or holds several jobs.
        InvalidManifestError: when the job is invalid; the message names each wrong field and its line.
    """
    jobs = read_jobs([path], assignments)
    if len(jobs) > 1:
        raise UsageError(f"{source_of(path)} holds {len(jobs)} jobs; this command takes one")
    return jobs[0]


def read_jobs(paths: Iterable[Path], assignments: Iterable[str] = ()) -> list[JobFile]:
    """Read the jobs of several files; each file has one or more documents.

    Raises:
        UsageError, InvalidManifestError: as `read_job`; the problems of all files are reported together.
    """
    jobs: list[JobFile] = []
    messages: list[str] = []
    for path in paths:
        try:
            jobs += _parse_documents(read_file(path), source_of(path), list(assignments))
        except InvalidManifestError as error:
            messages.append(str(error))
    if messages:
        raise InvalidManifestError("\n".join(messages))
    for job in jobs:
        for hint in find_hints(job.spec):
            warn(f"{job.source}: {hint}")
    return jobs


def parse_job(text: str, source: str, assignments: Iterable[str] = ()) -> list[JobFile]:
    """Check and return the jobs in a text.

    Args:
        source: name of the text, for messages.

    Raises:
        InvalidManifestError: when a job is invalid; the message names each wrong field and its line.
    """
    return _parse_documents(_parse(text, source), source, list(assignments))


def read_file(path: Path) -> list[Document]:
    """Read the documents of a file, whatever they hold.

    Args:
        path: path of the file; `-` for stdin.

    Raises:
        UsageError: when the file cannot be read.
        InvalidManifestError: when it is not YAML or JSON; the message has the line.
    """
    source = source_of(path)
    if str(path) == STDIN and sys.stdin is None:
        raise UsageError("cannot read stdin: it is closed")
    try:
        data = sys.stdin.buffer.read() if str(path) == STDIN else path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidManifestError(f"{source}:1: is not UTF-8 text (byte {error.start})") from None
    return _parse(text, source)


def _parse(text: str, source: str) -> list[Document]:
    try:
        return read_documents(text)
    except ManifestError as error:
        raise InvalidManifestError(f"{source}:{error.line}: {error}") from None


def _parse_documents(documents: list[Document], source: str, assignments: list[str]) -> list[JobFile]:
    if not documents:
        raise InvalidManifestError(f"{source}:1: holds no job")
    messages = [line for document in documents for line in _messages(document, source, assignments)]
    if messages:
        raise InvalidManifestError("\n".join(messages))
    return [JobFile(item.data, parse_spec(without_nulls(item.data["spec"])), source) for item in documents]


def source_of(path: Path) -> str:
    """Return the name of a file for messages."""
    return "stdin" if str(path) == STDIN else str(path)


def _messages(document: Document, source: str, assignments: list[str]) -> Iterator[str]:
    """Apply the assignments to a document, in place, and yield a message for each problem that is left.

    A problem in an assigned field is reported as one of `--set`; any other with its line in the file.
    """
    before = find_problems(document.data)
    if before and not assignments:
        yield from locate(before, document, source)
        return
    data = copy.deepcopy(document.data)
    spec = data.get("spec") if isinstance(data, dict) else None
    if not isinstance(spec, dict):
        yield from locate(before, document, source)
        return
    for assignment in assignments:
        assign(spec, assignment)
    changed = {tuple(text.partition("=")[0].split(".")) for text in assignments}
    problems = find_problems(data)
    document.data = data
    for problem in sorted(problems, key=lambda problem: document.line(problem.path)):
        # problem.path begins with `spec`, which the paths of assignments leave out.
        given = next((path for path in changed if problem.path[1 : len(path) + 1] == path), None)
        if given is None and problem not in before and (start := problem.path[1:]):
            # a parent of the assigned field, which the assignment has added
            given = next((path for path in changed if path[: len(start)] == start), None)
        if given is not None:
            yield f"--set {'.'.join(given)}: {problem}"
        else:
            yield from locate([problem], document, source)


def locate(problems: Iterable[Problem], document: Document, source: str) -> Iterator[str]:
    """Yield a message with the line for each problem, in the order of the lines."""
    for problem in sorted(problems, key=lambda problem: document.line(problem.path)):
        yield f"{source}:{document.line(problem.path)}: {problem}"


def assign(spec: dict[str, Any], assignment: str) -> None:
    """Change a field of a spec by FIELD=VALUE.

    Raises:
        UsageError: when the assignment has another form, or its path leads through a value that has no fields.
    """
    field, separator, text = assignment.partition("=")
    if not separator or not all(field.split(".")):
        raise UsageError(f"--set {assignment}: write FIELD=VALUE")
    *parents, last = field.split(".")
    if parents and parents[0] == "spec":
        raise UsageError(f"--set {assignment}: leave out 'spec.', fields are looked up there")
    place = spec
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise UsageError(f"--set {assignment}: {parent} is a value and has no fields")
    place[last] = _parse_value(text, (*parents, last), assignment)


def _parse_value(text: str, path: tuple[str, ...], assignment: str) -> Any:
    """Parse the value of an assignment, which is YAML.

    A number for a text field needs no quotes here. Real numbers are text fields in the job's schema.
    """
    try:
        documents = read_documents(f"value: {text}\n")
    except ManifestError as error:
        raise UsageError(f"--set {assignment}: {error}") from None
    value = documents[0].data["value"]
    if value is None and text.strip():
        return None  # null: the field's default, as in a manifest
    is_text = schema_at(path).get("type") == "string"
    if is_text and not isinstance(value, str | dict | list) and resolve_scalar(text) == value:
        return text
    return value
