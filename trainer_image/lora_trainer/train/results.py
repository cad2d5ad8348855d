"""What a training leaves: the adapter's files, verified, and what tells of them."""

from __future__ import annotations

import io
import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image

from lora_api import __version__
from lora_api.manifest import CaptionsManifest, FileEntry, Manifest, Selection
from lora_api.status import AdapterStatus
from lora_api.steps import TrainStep

from ..store import Bucket, ObjectMissingError
from .adapter import Adapted
from .export import FILE_NAMES, verify, write_diffusers, write_kohya
from .gallery import Gallery
from .loop import Learner
from .metadata import describe
from .publish import commit
from .records import best_step, mean_loss
from .report import Facts, Shown, Timing, render
from .sheet import lay_out

METRICS, LAYERS = "metrics.jsonl", "layers.json"
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")


@dataclass(frozen=True)
class Results:
    """A trained adapter, drawn but not yet published."""

    config: TrainStep
    bucket: Bucket
    folder: Path
    """For files, on this machine."""
    learner: Learner
    adapted: Adapted
    gallery: Gallery
    shown: list[Shown]
    """What was trained on."""
    layers: Mapping[str, object] | None
    """`extract.report`, for an adapter that was taken out of a fine-tuned model."""
    prepare_seconds: float
    begun: float
    """When publication began, by the monotonic clock."""

    def publish(self) -> Manifest:
        """Write, verify and publish the adapter, its metrics and its report; the manifest last."""
        paths = {form: self.folder / FILE_NAMES[form] for form in self.config.spec.output.formats}
        for form, path in paths.items():
            if form == "diffusers":
                write_diffusers(path, self.adapted)
            else:
                write_kohya(path, self.adapted, self._describe())
        for path in paths.values():
            verify(path, self.adapted)
        lines = [json.dumps(asdict(record)) + "\n" for record in self.learner.records]
        (self.folder / METRICS).write_text("".join(lines))
        names = [*(path.name for path in paths.values()), METRICS]
        if self.layers is not None:
            (self.folder / LAYERS).write_text(json.dumps(self.layers, indent=1))
            names.append(LAYERS)
        manifest = self._manifest({name: self._upload(self.folder / name) for name in names})
        keys, attempt = self.config.keys, self.config.attempt
        sheet, page = (
            self.folder / Path(key).name for key in (keys.preview_sheet(attempt), keys.report(attempt))
        )
        self._lay_out().save(sheet)
        page.write_text(self._tell(manifest))
        told = [self._upload(sheet), self._upload(page)]
        manifest = manifest.model_copy(update={"files": [*manifest.files, *told]})
        commit(self.bucket, self.config, manifest)
        return manifest

    def _upload(self, path: Path) -> FileEntry:
        return upload(self.bucket, self.config, path)

    def _describe(self) -> dict[str, str]:
        prediction = self.learner.schedule.config.prediction_type
        path = self.folder / Path(self.gallery.previews[-1].key).name
        with Image.open(path) as preview:
            return describe(self.config, len(self.learner.sources[0].latents), prediction, preview)

    def _manifest(self, files: dict[str, FileEntry]) -> Manifest:
        config, records = self.config, self.learner.records
        form = "diffusers" if "diffusers" in config.spec.output.formats else "kohya"
        adapter = files[FILE_NAMES[form]]
        tenth = math.ceil(len(records) / 10)
        training = config.spec.training
        return Manifest(
            namespace=config.namespace,
            name=config.name,
            uid=config.uid,
            attempt=config.attempt,
            input_hash=config.input_hash,
            adapter=AdapterStatus(
                uri=self.bucket.uri(adapter.key),
                sha256=adapter.sha256,
                bytes=adapter.bytes,
                format=form,
                manifest_key=config.keys.manifest(config.attempt),
                report_key=config.keys.report(config.attempt),
            ),
            concept=config.spec.concept,
            base_model=config.base_model,
            resolution=training.resolution,
            files=[*files.values(), *self.gallery.files],
            previews=self.gallery.previews,
            steps=len(records),
            seed=training.seed,
            first_loss=mean_loss(records[:tenth]) or 0.0,
            final_loss=mean_loss(records[-tenth:]) or 0.0,
            selection=self._selection() if training.validation.every_steps else None,
            versions={"lora_trainer": __version__, **{name: version(name) for name in LIBRARIES}},
        )

    def _selection(self) -> Selection:
        records, training = self.learner.records, self.config.spec.training
        step = best_step(records, training) or len(records)
        return Selection(
            publish=training.validation.publish,
            step=step,
            held_out_loss=records[step - 1].held_out_loss,
            stopped_early=len(records) < training.max_steps,
        )

    def _lay_out(self) -> Image.Image:
        """The previews, a line for each prompt: the base model's picture, then the adapter's, step by step."""
        lines = []
        for prompt in self.gallery.prompts:
            base, previews = self.gallery.bases.get(prompt), self.gallery.previews
            keys = {"base model": base} if base else {}
            keys |= {f"step {preview.step}": preview.key for preview in previews if preview.prompt == prompt}
            lines.append((prompt, {label: self._open(key) for label, key in keys.items()}))
        return lay_out(lines, cell=256)

    def _open(self, key: str) -> Image.Image:
        return Image.open(io.BytesIO(self.bucket.get(key)))

    def _tell(self, manifest: Manifest) -> str:
        """The report as HTML."""
        records, captions = self.learner.records, self._fetch(self.config.keys.captions_manifest)
        training_seconds = sum(record.seconds for record in records)
        facts = Facts(
            config=self.config,
            manifest=manifest,
            records=records,
            trained_on=self.shown,
            bases=self.gallery.bases,
            captions=CaptionsManifest.model_validate_json(captions) if captions else None,
            timing=Timing(self.prepare_seconds, training_seconds, time.monotonic() - self.begun),
            device=_name(self.learner.state.device),
            fetch=self._fetch,
            layers=self.layers,
        )
        return render(facts)

    def _fetch(self, key: str) -> bytes | None:
        try:
            return self.bucket.get(key)
        except ObjectMissingError:
            return None


def upload(bucket: Bucket, config: TrainStep, path: Path) -> FileEntry:
    """Put a file into the attempt's folder in the store."""
    return bucket.put_file(config.keys.attempt(config.attempt) + path.name, path)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}"
