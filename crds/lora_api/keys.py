"""Object keys in the output bucket. No key is built anywhere else.

Every job writes under its own UID, so two jobs can never write the same key; only what is named by a
hash of its content or inputs (`captions cache`, `reuse`, class pictures) is shared within a namespace.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class JobKeys:
    """The keys of one job."""

    namespace: str
    name: str
    uid: str

    @property
    def root(self) -> str:
        return f"{self.namespace}/{self.name}/{self.uid}/"

    @property
    def captions(self) -> str:
        """Hugging Face's imagefolder convention: lines of `file_name`, `text`."""
        return f"{self.root}captions/metadata.jsonl"

    @property
    def captions_manifest(self) -> str:
        return f"{self.root}captions/manifest.json"

    @property
    def dataset_report(self) -> str:
        return f"{self.root}captions/dataset.json"

    def image(self, index: int) -> str:
        """A clean image; `index` counts from 0."""
        return f"{self.root}images/{index:03d}.png"

    def image_named(self, file_name: str) -> str:
        """A clean image by the `file_name` of metadata.jsonl."""
        return f"{self.root}images/{file_name}"

    @property
    def checkpoints(self) -> str:
        return f"{self.root}checkpoints/"

    def checkpoint(self, step: int) -> str:
        return f"{self.checkpoints}step-{step:06d}/"

    def checkpoint_manifest(self, step: int) -> str:
        return f"{self.checkpoint(step)}manifest.json"

    def attempt(self, number: int) -> str:
        return f"{self.root}attempt-{number}/"

    def report(self, number: int) -> str:
        """What an attempt did, as one HTML file."""
        return f"{self.attempt(number)}report.html"

    def preview_sheet(self, number: int) -> str:
        """All previews of an attempt on one picture."""
        return f"{self.attempt(number)}previews.png"

    def manifest(self, number: int) -> str:
        """Written last: the commit mark of a publication."""
        return f"{self.attempt(number)}manifest.json"


def bought_caption(namespace: str, digest: str) -> str:
    """One caption that was paid for, by the hash of all that it depends on."""
    return f"{namespace}/.captions/{digest}.json"


def reuse_pointer(namespace: str, input_hash: str) -> str:
    """Points at the manifest of an adapter that was trained from exactly these inputs."""
    return f"{namespace}/.reuse/{input_hash.removeprefix('sha256:')}.json"


def class_images(namespace: str, digest: str) -> str:
    """Class pictures for prior preservation, by the hash of model, prompt, resolution and seed."""
    return f"{namespace}/.class-images/{digest}/"
