"""Object keys in the output bucket. No other module builds or parses them.

Every job writes under its own UID, so two jobs never write the same key. The jobs of a namespace share only
objects that are named by a hash of their content or inputs: cached captions, reuse pointers and class images.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PART = r"[^/\\\x00-\x1f]+"
_JOB = re.compile(rf"({_PART})/({_PART})/({_PART})/(.+)", re.DOTALL)
_ATTEMPT = re.compile(r"attempt-([1-9][0-9]{0,8})/(.+)", re.DOTALL)
_CHECKPOINT = re.compile(r"step-([0-9]{6,9})/(.+)", re.DOTALL)

MANIFEST = "manifest.json"
CAPTIONS = "captions/metadata.jsonl"


@dataclass(frozen=True)
class JobKeys:
    """The keys of one job."""

    namespace: str
    name: str
    uid: str
    variant: str = ""
    """The variant whose checkpoints are meant; empty for a job without variants."""

    @property
    def root(self) -> str:
        """Prefix of everything that the job writes, except shared objects."""
        return f"{self.namespace}/{self.name}/{self.uid}/"

    def holds(self, key: str) -> bool:
        """Whether a key is under this job's prefix and does not leave it by `..`."""
        return is_below(key, self.root)

    @property
    def captions(self) -> str:
        """The captions file, metadata.jsonl (see `caption_rows`)."""
        return f"{self.root}{CAPTIONS}"

    @property
    def captions_manifest(self) -> str:
        return f"{self.root}captions/{MANIFEST}"

    @property
    def dataset_report(self) -> str:
        return f"{self.root}captions/dataset.json"

    @property
    def spend(self) -> str:
        """The file that records what the job has spent on captions so far."""
        return f"{self.root}captions/spend.json"

    def image(self, index: int) -> str:
        """Return the key of an image for training; `index` counts from 0."""
        return self.image_named(f"{index:03d}.png")

    def image_named(self, file_name: str) -> str:
        """Return the key of an image for training, by its `file_name` in metadata.jsonl."""
        return f"{self.root}images/{file_name}"

    def image_name(self, key: str) -> str | None:
        """Return the `file_name` of the image with this key; None if the key is not that of an image for training."""
        name = key.removeprefix(self.image_named(""))
        return name if name != key and name and "/" not in name else None

    @property
    def checkpoints(self) -> str:
        folder = f"{self.root}checkpoints/"
        return f"{folder}variants/{self.variant}/" if self.variant else folder

    def checkpoint(self, step: int) -> str:
        """Return the prefix of the checkpoint after a step."""
        return f"{self.checkpoints}step-{step:06d}/"

    def checkpoint_manifest(self, step: int) -> str:
        return f"{self.checkpoint(step)}{MANIFEST}"

    def checkpoint_step(self, key: str) -> int | None:
        """Return the step of the checkpoint that an object belongs to; None for another key."""
        match = _CHECKPOINT.fullmatch(key.removeprefix(self.checkpoints))
        return int(match[1]) if match and key.startswith(self.checkpoints) else None

    def attempt(self, number: int) -> str:
        """Return the prefix of the results of one attempt."""
        return f"{self.root}attempt-{number}/"

    def report(self, number: int) -> str:
        """Return the key of an attempt's report."""
        return f"{self.attempt(number)}report.html"

    def contact_sheet(self, number: int) -> str:
        """Return the key of an attempt's contact sheet."""
        return f"{self.attempt(number)}previews.png"

    def manifest(self, number: int) -> str:
        """Return the key of an attempt's manifest, which is written last; a result without one does not count."""
        return f"{self.attempt(number)}{MANIFEST}"


def cached_caption(namespace: str, digest: str) -> str:
    """Return the key of a cached caption. `digest` is the hash of everything that the caption depends on."""
    return f"{namespace}/.captions/{digest}.json"


def reuse_pointer(namespace: str, input_hash: str) -> str:
    """Return the key of the pointer to the manifest of the adapter that was trained from exactly these inputs."""
    return f"{namespace}/.reuse/{input_hash.removeprefix('sha256:')}.json"


def class_images(namespace: str, digest: str) -> str:
    """Return the prefix of the class images for prior preservation.

    `digest` is the hash of everything that they depend on.
    """
    return f"{namespace}/.class-images/{digest}/"


def class_image(namespace: str, digest: str, index: int) -> str:
    """Return the key of a class image; `index` counts from 0."""
    return f"{class_images(namespace, digest)}{index:05d}.png"


def namespace_root(namespace: str) -> str:
    """Return the prefix of everything that the jobs of a namespace write."""
    return f"{namespace}/"


def is_below(key: str, prefix: str) -> bool:
    """Whether a key lies under a prefix that ends in a slash, without leaving it by empty, `.` or `..` parts."""
    rest = key.removeprefix(prefix)
    return (
        prefix.endswith("/") and rest != key and not any(part in ("", ".", "..") for part in rest.split("/"))
    )


def folder_of(key: str) -> str:
    """Return the folder of an object: its key up to and including the last slash."""
    return key[: key.rfind("/") + 1]


def file_name_of(key: str) -> str:
    """Return the last part of an object's key."""
    return key[key.rfind("/") + 1 :]


def parse_job_key(key: str) -> tuple[JobKeys, str] | None:
    """Return the job that an object belongs to, and the rest of its key.

    None for a key of no job. The shared objects of a namespace are such keys: in place of a job's name they have a
    part that begins with a dot.
    """
    match = _JOB.fullmatch(key)
    if match is None or any(part.startswith(".") for part in match.groups()[:3]):
        return None
    keys = JobKeys(match[1], match[2], match[3])
    return (keys, match[4]) if keys.holds(key) else None


def parse_manifest_key(key: str) -> tuple[JobKeys, int] | None:
    """Return the job and the attempt whose manifest a key is; None for another key."""
    parsed = parse_job_key(key)
    match = _ATTEMPT.fullmatch(parsed[1]) if parsed else None
    return (parsed[0], int(match[1])) if parsed and match and match[2] == MANIFEST else None


def parse_captions_key(key: str) -> JobKeys | None:
    """Return the job whose metadata.jsonl a key is; None for another key."""
    parsed = parse_job_key(key)
    return parsed[0] if parsed and parsed[1] == CAPTIONS else None
