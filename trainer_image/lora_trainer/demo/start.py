"""Start of a job: by `lora run` on this machine, or by the Kubernetes API."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lora_api import API_VERSION, KIND
from lora_api.fields import is_subdomain
from lora_api.job import InvalidResourceError, parse_spec

from ..errors import BadConfigurationError, BadDataError
from ..store import Bucket
from .jobs_api import JobsApi
from .uploads import Upload, digest, is_image, write_uploads

LOG_LINES = 15
"""Lines of the command's output that are shown when it failed."""
MAX_MANIFEST_BYTES = 256 << 10
"""Limit of a manifest's text, far above that of a spec."""
JOB, IMAGES = "job.json", "images"
"""Names in the folder of a job's uploads."""
METADATA = ("name", "namespace", "labels", "annotations")
"""Fields of the metadata that a user may set. Owners and finalizers would block or cause deletions."""


class _Loader(yaml.SafeLoader):
    """Loads YAML without aliases, because a few lines of them multiply to any number of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*) are not supported here", problem_mark=mark)
        return super().compose_node(parent, index)


def read_manifest(text: str) -> dict[str, Any]:
    """Read a manifest that a user may have edited.

    Raises:
        BadConfigurationError: when it is not the manifest of one valid job.
    """
    if len(text) > MAX_MANIFEST_BYTES:
        raise BadConfigurationError(f"the manifest must have at most {MAX_MANIFEST_BYTES >> 10} KiB")
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise BadConfigurationError("the manifest is nested too deeply") from None
    except yaml.YAMLError as error:
        raise BadConfigurationError(f"the manifest is not valid YAML: {error}") from None
    except (TypeError, ValueError) as error:
        raise BadConfigurationError(f"the manifest has a value that JSON does not have: {error}") from None
    if not isinstance(document, dict) or (document.get("apiVersion"), document.get("kind")) != (
        API_VERSION,
        KIND,
    ):
        raise BadConfigurationError(f"the manifest must have apiVersion {API_VERSION} and kind {KIND}")
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(name, str) or not is_subdomain(name):
        raise BadConfigurationError(
            "metadata.name must consist of lower-case letters, digits and hyphens, for example red-backpack"
        )
    namespace = metadata.get("namespace", "default")
    if not isinstance(namespace, str) or not is_subdomain(namespace):
        raise BadConfigurationError(
            "metadata.namespace must consist of lower-case letters, digits and hyphens"
        )
    if others := [field for field in metadata if field not in METADATA]:
        raise BadConfigurationError(
            f"metadata may have only {', '.join(METADATA)} here: remove {', '.join(map(str, others))}"
        )
    try:
        parse_spec(document.get("spec"))
    except InvalidResourceError as error:
        raise BadConfigurationError(str(error)) from None
    return document


@dataclass
class LocalStart:
    """A `lora run` on uploaded files. Its process outlives the page."""

    command: tuple[str, ...]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    """The process; None for a job that the page has started before it was restarted itself."""
    started_at: float = 0.0
    """When the process was started, in seconds since the epoch."""
    stopping: bool = False
    """Whether the process was told to end. It still saves a checkpoint."""

    @classmethod
    def in_folder(cls, command: Sequence[str], folder: Path) -> LocalStart:
        """Describe the run of a job from the folder of its uploads. Nothing is started.

        Args:
            command: `lora run` with the options of this machine.
            folder: the folder of the job's uploads.
        """
        return cls((*command, str(folder / JOB), "--images", str(folder / IMAGES)), folder / "run.log")

    def run(self) -> LocalStart:
        """Run the command, which starts the job or continues a stopped one."""
        with self.log.open("wb") as out:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return LocalStart(self.command, self.log, process, time.time())

    def stop(self) -> None:
        """Let the job save a checkpoint and end."""
        if self.process is not None:
            self.stopping = True
            self.process.terminate()

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    @property
    def killed(self) -> bool:
        """Whether a signal has ended it, for example before it could save anything."""
        return self.process is not None and (self.process.poll() or 0) < 0

    @property
    def output(self) -> str:
        """The last lines of the command's output."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        except OSError:
            return ""


def start_locally(
    command: Sequence[str], folder: Path, manifest: Mapping[str, Any], files: Sequence[Upload]
) -> LocalStart:
    """Write the files below a folder and run `lora run` on them in the background.

    Args:
        command: `lora run` with the options of this machine.
        folder: folder of all uploads. That of the job is below it.
        manifest: a valid manifest.
        files: images and captions.
    """
    metadata = manifest["metadata"]
    job_folder = folder / str(metadata.get("namespace", "default")) / str(metadata["name"])
    write_uploads(job_folder / IMAGES, files)
    # JSON, because PyYAML writes texts such as 5e-4 without quotes, which Kubernetes reads as numbers.
    (job_folder / JOB).write_text(json.dumps(dict(manifest), indent=1, ensure_ascii=False))
    return LocalStart.in_folder(command, job_folder).run()


def find_start(command: Sequence[str], folder: Path, namespace: str, name: str) -> LocalStart | None:
    """Return a job that the page has started before it was restarted; None if there is none of this name.

    Args:
        command: as for `start_locally`.
        folder: folder of all uploads.
    """
    if not is_subdomain(namespace) or not is_subdomain(name):
        return None
    job_folder = folder / namespace / name
    return LocalStart.in_folder(command, job_folder) if (job_folder / JOB).is_file() else None


def last_start(folder: Path) -> tuple[str, str] | None:
    """Return the namespace and name of the job that was uploaded last; None if there is none.

    Args:
        folder: folder of all uploads.
    """
    jobs = {file.parent: file.stat().st_mtime for file in folder.glob(f"*/*/{JOB}")}
    if not jobs:
        return None
    last = max(jobs, key=jobs.__getitem__)
    return last.parent.name, last.name


def start_in_cluster(
    api: JobsApi, bucket: Bucket, namespace: str, manifest: Mapping[str, Any], files: Sequence[Upload]
) -> str:
    """Upload the images and create the job.

    Nothing is uploaded for a job that the API server would refuse, because of its fields or for lack of permissions.

    Args:
        bucket: the input bucket.
        files: images, and captions beside them.

    Returns:
        The prefix of the images.

    Raises:
        BadSetupError: with the message of the API server.
    """
    metadata, spec = dict(manifest["metadata"]), dict(manifest["spec"])
    if metadata.get("namespace", namespace) != namespace:
        raise BadDataError(f"metadata.namespace must be {namespace}, or be left out")
    # The digest is part of the prefix, so that the images of an earlier job of this name are not overwritten.
    prefix = f"uploads/{namespace}/{metadata['name']}-{digest(files)}/"
    body = {
        **manifest,
        "metadata": {**metadata, "namespace": namespace},
        "spec": {**spec, "dataset": {**spec["dataset"], "prefix": prefix}},
    }
    api.create_job(namespace, body, dry_run=True)
    for file in sorted(files, key=lambda file: is_image(file.name)):
        bucket.put(prefix + file.name, file.data)
    api.create_job(namespace, body)
    return prefix
