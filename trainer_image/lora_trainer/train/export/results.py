"""The results of a training: verified adapter files, metrics, previews and report."""

from __future__ import annotations

import io
import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from pydantic import ValidationError

from lora_api import __version__
from lora_api.keys import file_name_of
from lora_api.manifest import (
    CaptionsManifest,
    EmbeddingsEntry,
    FileEntry,
    Manifest,
    Memory,
    Selection,
    VariantResult,
)
from lora_api.stages import TrainConfig
from lora_api.status import AdapterStatus

from ...store import Bucket, ObjectMissingError, ObjectTooLargeError
from ..loop import TrainState
from ..model.adapter import Adapted
from ..model.token_embeddings import TokenEmbeddings
from ..records import best_step, mean_loss
from ..report import ReportData, Timing, TrainingImage, render
from ..sampling.contact_sheet import contact_sheet
from ..sampling.previews import Previews
from .adapter_file import FILE_NAMES, verify, write_diffusers, write_kohya
from .embeddings_file import FILE_NAME as EMBEDDINGS
from .embeddings_file import write_embeddings
from .events import FILE_NAME as EVENTS
from .events import write_events
from .metadata import common_metadata, describe
from .model_card import FILE_NAME as CARD
from .model_card import model_card
from .publish import commit

METRICS, LAYERS, CAPTIONS = "metrics.jsonl", "layers.json", "captions.jsonl"
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")


@dataclass(frozen=True)
class Results:
    """The results of a job whose training is complete and whose previews are generated."""

    config: TrainConfig
    bucket: Bucket
    folder: Path
    """Local folder of the attempt's files."""
    state: TrainState
    modules: Adapted
    token_embeddings: TokenEmbeddings | None
    """The new tokens; None where no token embeddings are trained."""
    previews: Previews
    shown: list[TrainingImage]
    """The images of the concept, for the report."""
    layers: Mapping[str, object] | None
    """Result of `extract.report`; None unless the adapter was extracted."""
    prepare_seconds: float
    """Duration of the preparation before the first step."""
    started: float
    """Time when the publication started, by the monotonic clock."""
    memory: Memory | None = None
    """Planned and measured peak of the memory."""
    variants: Sequence[VariantResult] = ()
    """Results of all variants; empty where the job has none."""

    def publish(self) -> Manifest:
        """Write, verify and publish the adapter, its metrics and its report. The manifest is written last."""
        self.previews.copy_earlier(self.bucket, self.folder, self.config.keys.attempt(self.config.attempt))
        paths = {form: self.folder / FILE_NAMES[form] for form in self.config.spec.output.formats}
        for form, path in paths.items():
            if form == "diffusers":
                write_diffusers(path, self.modules, common_metadata(self.config))
            else:
                write_kohya(path, self.modules, self._describe())
        for path in paths.values():
            verify(path, self.modules)
        lines = [json.dumps(asdict(record)) + "\n" for record in self.state.records]
        (self.folder / METRICS).write_text("".join(lines))
        names = [*(path.name for path in paths.values()), METRICS]
        if self.token_embeddings:
            write_embeddings(self.folder / EMBEDDINGS, self.token_embeddings)
            names.append(EMBEDDINGS)
        if self.layers is not None:
            (self.folder / LAYERS).write_text(json.dumps(self.layers, indent=1))
            names.append(LAYERS)
        if self.config.spec.output.captions:
            (self.folder / CAPTIONS).write_text(self._captions())
            names.append(CAPTIONS)
        manifest = self._manifest({name: self._upload(self.folder / name) for name in names})
        keys, attempt = self.config.keys, self.config.attempt
        sheet, page = (
            self.folder / Path(key).name for key in (keys.contact_sheet(attempt), keys.report(attempt))
        )
        self._contact_sheet().save(sheet)
        page.write_text(self._render_report(manifest))
        card, events = self.folder / CARD, self.folder / EVENTS
        card.write_text(model_card(self.config.spec, manifest, len(self.shown)))
        write_events(events, self.state.records, self.previews.previews, self._fetch)
        added = [self._upload(path) for path in (sheet, page, card, events)]
        manifest = manifest.model_copy(update={"files": [*manifest.files, *added]})
        commit(self.bucket, self.config, manifest)
        return manifest

    def _captions(self) -> str:
        """Return the captions that were trained on, one JSON object a line."""
        rows = ({"file_name": file_name_of(image.key), "text": image.caption} for image in self.shown)
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def _upload(self, path: Path) -> FileEntry:
        return upload(self.bucket, self.config, path)

    def _describe(self) -> dict[str, str]:
        prediction = self.state.noise_scheduler.config.prediction_type
        if not self.previews.previews:  # they did not fit into the GPU's memory
            blank = Image.new("RGB", (256, 256), "white")
            return describe(self.config, len(self.state.streams[0].latents), prediction, blank)
        path = self.folder / Path(self.previews.previews[-1].key).name
        with Image.open(path) as preview:
            return describe(self.config, len(self.state.streams[0].latents), prediction, preview)

    def _manifest(self, files: dict[str, FileEntry]) -> Manifest:
        """Build the manifest from the files that are uploaded so far, by name, and the previews."""
        config, records = self.config, self.state.records
        form = "diffusers" if "diffusers" in config.spec.output.formats else "kohya"
        adapter = files[FILE_NAMES[form]]
        tenth = math.ceil(len(records) / 10)
        training = config.spec.training
        published = records[(best_step(records, training) or len(records)) - 1]
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
                likeness=_two_decimals(published.likeness),
                fidelity=_two_decimals(published.fidelity),
            ),
            concept=config.spec.concept,
            base_model=config.base_model,
            resolution=training.resolution,
            files=[*files.values(), *self.previews.files],
            previews=self.previews.previews,
            steps=len(records),
            seed=training.seed,
            first_loss=mean_loss(records[:tenth]) or 0.0,
            final_loss=mean_loss(records[-tenth:]) or 0.0,
            selection=self._selection() if training.validation.every_steps else None,
            variants=list(self.variants),
            memory=self.memory,
            embeddings=(
                EmbeddingsEntry(key=files[EMBEDDINGS].key, tokens=list(self.token_embeddings.tokens))
                if self.token_embeddings
                else None
            ),
            versions={"lora_trainer": __version__, **{name: version(name) for name in LIBRARIES}},
        )

    def _selection(self) -> Selection:
        """Describe which step is published, and its measurements."""
        records, training = self.state.records, self.config.spec.training
        step = best_step(records, training) or len(records)
        return Selection(
            publish=training.validation.publish,
            step=step,
            held_out_loss=records[step - 1].held_out_loss,
            likeness=records[step - 1].likeness,
            fidelity=records[step - 1].fidelity,
            score=records[step - 1].score,
            stopped_early=len(records) < training.max_steps,
        )

    def _contact_sheet(self) -> Image.Image:
        """Arrange the previews in a row for each prompt: the base preview, then the adapter's previews by step."""
        rows = []
        for prompt in self.previews.prompts:
            base = self.previews.bases.get(prompt)
            keys = {"base model": base} if base else {}
            keys |= {
                f"step {preview.step}": preview.key
                for preview in self.previews.previews
                if preview.prompt == prompt
            }
            rows.append((prompt, {label: self._open(key) for label, key in keys.items()}))
        return contact_sheet(rows, cell=256)

    def _open(self, key: str) -> Image.Image:
        return Image.open(io.BytesIO(self.bucket.get(key)))

    def _render_report(self, manifest: Manifest) -> str:
        records, captions = self.state.records, self._fetch(self.config.keys.captions_manifest)
        training_seconds = sum(record.seconds for record in records)
        data = ReportData(
            config=self.config,
            manifest=manifest,
            records=records,
            training_images=self.shown,
            base_previews=self.previews.bases,
            captions=_read_captions_manifest(captions),
            timing=Timing(self.prepare_seconds, training_seconds, time.monotonic() - self.started),
            device=_name(self.state.distributed.device),
            fetch=self._fetch,
            layers=self.layers,
        )
        return render(data)

    def _fetch(self, key: str) -> bytes | None:
        try:
            return self.bucket.get(key)
        except (ObjectMissingError, ObjectTooLargeError):
            return None


def _read_captions_manifest(data: bytes | None) -> CaptionsManifest | None:
    """Read the manifest of the captions; None if it is missing, or was changed since and cannot be read."""
    try:
        return CaptionsManifest.model_validate_json(data) if data else None
    except ValidationError:
        return None


def upload(bucket: Bucket, config: TrainConfig, path: Path) -> FileEntry:
    """Store a file in the attempt's folder in the store."""
    return bucket.put_file(config.keys.attempt(config.attempt) + path.name, path)


def _two_decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}"
