"""One training run: what it loads, how it resumes, what it saves and what it publishes."""

from __future__ import annotations

import json
import logging
import math
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor

from lora_api import __version__
from lora_api.job import Crop, Method
from lora_api.manifest import CaptionsManifest, FileEntry, Manifest, Selection
from lora_api.status import AdapterStatus
from lora_api.steps import TrainStep

from ..errors import BadDataError
from ..progress import Reporter
from ..store import ObjectMissingError, Store
from .adapter import TEXT_ENCODERS, UNET, add_adapter, trainable
from .base_model import TextTower, provide_base_model
from .checkpoint import Checkpoint, Checkpoints
from .class_pictures import class_prompt, provide_class_pictures
from .dataset import read_pictures
from .draws import CLASS, HELD_OUT, INSTANCE
from .encode import Encoders, TextEmbedding, encode_text
from .export import FILE_NAMES, verify, write_diffusers, write_kohya
from .extract import extract, make_trainable, put_adapter, report, tuned_weights
from .fused import fuse
from .gallery import Gallery
from .lean import make_lean
from .loop import Learner, Source, batches, train
from .metadata import describe
from .objective import predict
from .optimizers import build_optimizer, build_schedule, optimizer_state, restore_optimizer
from .plan import Machine, footprints, free_memory, make_plan
from .publish import commit
from .quantize import quantize
from .records import Record, best_step, mean_loss
from .report import Facts, Timing, render, show

log = logging.getLogger(__name__)
METRICS, LAYERS = "metrics.jsonl", "layers.json"
BEST = "best "
"""Before the names, in a checkpoint, of what the best step's weights were."""
SMOOTHING = 20
"""Steps that the reported loss and speed are means over."""
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")


class Session:
    """A job's model, data and learner on this process."""

    def __init__(self, config: TrainStep, store: Store, state: PartialState, dtype: torch.dtype) -> None:
        """Fetch and encode all that training needs.

        Raises:
            StepError: when the model or the pictures cannot be had.
        """
        begun = time.monotonic()
        self._config = config
        self._bucket = store.output
        self._dtype = dtype
        self._training = training = config.spec.training
        work = Path(config.work_dir)
        self._folder = work / f"attempt-{config.attempt}"
        if state.is_main_process:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        self._gallery = Gallery(config, self._upload, self._embed)
        self._checkpoints = Checkpoints(
            store.output, config.keys, config.input_hash, training.checkpoint.keep_last, work
        )
        self._towers: tuple[TextTower, TextTower] | None = None
        """Only where the text encoders learn too."""
        with state.main_process_first():  # the first fills the caches, the others read them
            self._model = provide_base_model(config, store.input)
            encoders = Encoders(self._model, work / "cache", state.device, dtype)
            sources, held_out = self._sources(encoders)
            captions = [caption for source in (*sources, held_out) for caption in source.captions]
            live = training.text_encoder.train
            self._texts = {} if live else encoders.texts(["", *captions, *self._gallery.prompts])
        self._build(state, sources, held_out)
        self._prepare_seconds = time.monotonic() - begun

    def _sources(self, encoders: Encoders) -> tuple[list[Source], Source]:
        """The customer's pictures and, for prior preservation, the class's; and what is measured on."""
        config, training = self._config, self._training
        pictures = read_pictures(
            self._bucket, config.keys, config.captions_sha256, use_crops=training.crop != Crop.CENTER
        )
        keep_shape = training.crop == Crop.BUCKETS
        latents = encoders.pictures(pictures, training.resolution, keep_shape)
        self._shown = [
            show(picture, config.keys.image_named(picture.name), training.resolution, keep_shape)
            for picture in pictures
        ]
        captions = [picture.caption for picture in pictures]
        kept = len(pictures) - training.validation.held_out_images
        if kept < 1:
            raise BadDataError(
                f"training.validation.heldOutImages is {training.validation.held_out_images} of "
                f"{len(pictures)} images: leave at least one to train on"
            )
        sources = [Source(INSTANCE, latents[:kept], captions[:kept])]
        held_out = Source(HELD_OUT, latents[kept:] or latents, captions[kept:] or captions)
        if training.prior_preservation.enabled:
            prompt = class_prompt(training, config.spec.concept)
            prior = provide_class_pictures(self._bucket, config.namespace, prompt, training, encoders)
            latents = encoders.pictures(prior, training.resolution)
            weight = float(training.prior_preservation.weight)
            sources.append(Source(CLASS, latents, [prompt] * len(prior), weight))
        return sources, held_out

    def _build(self, state: PartialState, sources: list[Source], held_out: Source) -> None:
        """Plan the memory, load what learns, and all that makes it learn."""
        training, dtype = self._training, self._dtype
        if state.device.type == "cuda":
            torch.cuda.empty_cache()  # what the encoders had
        machine = Machine(state.device.type, free_memory(state.device), footprints(self._config))
        plan = make_plan(training, self._model.folder, machine, dtype)
        log.info("memory:\n%s", plan)
        self._extracts = training.method == Method.DREAMBOOTH_EXTRACT
        unet = self._model.unet(torch.float32 if self._extracts else dtype)
        quantize(unet, training.quantize_base)
        unet.to(state.device)
        if plan.checkpointing:
            unet.enable_gradient_checkpointing()
        unet.train()
        self._adapted: dict[str, Any] = {UNET: unet}
        if training.text_encoder.train:
            self._towers = self._model.text_towers(dtype)
            for name, tower in zip(TEXT_ENCODERS, self._towers, strict=True):
                self._adapted[name] = tower.encoder.to(state.device)
        if self._extracts:
            make_trainable(unet, training.extraction.convolutions)
        else:
            for name, module in self._adapted.items():
                add_adapter(module, name, training.rank, training.alpha, training.seed, kind=training.adapter)
                fuse(module)
        make_lean(unet)
        parameters = trainable(self._adapted)
        optimizer = build_optimizer(training, parameters)
        self.learner = Learner(
            state=state,
            training=training,
            unet=unet,
            schedule=self._model.noise_schedule(),
            sources=sources,
            texts=self._embed,
            parameters=parameters,
            optimizer=optimizer,
            rates=build_schedule(training, optimizer),
            scaler=torch.amp.GradScaler(state.device.type, enabled=dtype == torch.float16),
            dtype=dtype,
            held_out=held_out,
        )
        self._best: dict[str, Tensor] = {}
        """What `learner.parameters` were after the step that is to be published, where that is not the last."""

    def _embed(self, text: str) -> TextEmbedding:
        """A text's embedding: now, through encoders that learn, or from the cache."""
        return encode_text(self._towers, text) if self._towers else self._texts[text]

    def resume(self) -> int | None:
        """Take up the newest sound checkpoint; its step, or None where training starts at the beginning."""
        found = self._checkpoints.newest()
        if found is None:
            return None
        learner = self.learner
        with torch.no_grad():
            for name, parameter in learner.parameters.items():
                parameter.copy_(found.weights[name])
        self._best = {
            name.removeprefix(BEST): tensor for name, tensor in found.weights.items() if name.startswith(BEST)
        }
        restore_optimizer(learner.optimizer, found.optimizer, found.state["optimizer"])
        learner.rates.load_state_dict(found.state["rates"])
        learner.scaler.load_state_dict(found.state["scaler"])
        learner.records = [Record(**record) for record in found.state["records"]]
        self._gallery.restore(found.state["gallery"])
        log.info("resuming after step %d", learner.step)
        return learner.step

    def train(self, asked_to_stop: Callable[[], bool], reporter: Reporter) -> bool:
        """Train to the end or to the next stop, saving on the way; whether the end was reached."""
        learner, training = self.learner, self._training
        state = learner.state

        def after_step(stop: bool) -> None:
            if not state.is_main_process:
                return
            step, last = learner.step, learner.is_done
            self._report(reporter)
            if best_step(learner.records, training.validation) == step:
                self._best = {
                    name: value.detach().cpu().clone() for name, value in learner.parameters.items()
                }
            every = training.preview.every_steps
            if every and step % every == 0 and not last:
                self._draw(with_base=False)
            due = stop or last or step % training.checkpoint.every_steps == 0
            if due and learner.is_sound(learner.records[-1]):
                self._save()

        if learner.is_done:
            return True
        done = train(learner, asked_to_stop, after_step)
        state.wait_for_everyone()  # a worker that leaves early would have the others killed
        return done

    def publish(self) -> Manifest:
        """Write, verify and publish the adapter, its previews, metrics and report; the manifest last."""
        begun = time.monotonic()
        with torch.no_grad():
            for name, value in self._best.items():
                self.learner.parameters[name].copy_(value)
        if self._extracts:
            self._extract()
        self._draw(with_base=True)
        paths = {form: self._folder / FILE_NAMES[form] for form in self._config.spec.output.formats}
        for form, path in paths.items():
            if form == "diffusers":
                write_diffusers(path, self._adapted)
            else:
                write_kohya(path, self._adapted, self._describe())
        for path in paths.values():
            verify(path, self._adapted)
        lines = [json.dumps(asdict(record)) + "\n" for record in self.learner.records]
        (self._folder / METRICS).write_text("".join(lines))
        names = [*(path.name for path in paths.values()), METRICS, *([LAYERS] if self._extracts else [])]
        manifest = self._manifest({name: self._upload(self._folder / name) for name in names})
        path = self._folder / Path(self._config.keys.report(self._config.attempt)).name
        path.write_text(self._tell(manifest, time.monotonic() - begun))
        reported = self._upload(path)
        manifest = manifest.model_copy(update={"files": [*manifest.files, reported]})
        commit(self._bucket, self._config, manifest)
        return manifest

    def _describe(self) -> dict[str, str]:
        prediction = self.learner.schedule.config.prediction_type
        path = self._folder / Path(self._gallery.previews[-1].key).name
        with Image.open(path) as preview:
            return describe(self._config, len(self.learner.sources[0].latents), prediction, preview)

    @torch.no_grad()
    def _extract(self) -> None:
        """Take the adapter out of the fine-tuned UNet and put it on the base one, which takes its place."""
        training, tuned = self._training, self.learner.unet.eval()
        base = self._model.unet(torch.float32)
        settings = training.extraction
        weights, before = (tuned_weights(unet, settings.convolutions) for unet in (tuned, base))
        factors = extract(weights, before, training.rank, settings)
        probe = next(iter(batches(self.learner, range(1))))
        wanted = predict(tuned, self.learner.schedule, probe)
        del self.learner.unet
        put_adapter(base, factors, training.rank, training.alpha)
        self.learner.unet = self._adapted[UNET] = base.to(self.learner.state.device)
        found = predict(base.eval(), self.learner.schedule, probe)
        error = float((found - wanted).norm() / wanted.norm())
        text = json.dumps(report(factors, error), indent=1)
        (self._folder / LAYERS).write_text(text)
        log.info("adapter taken out of %d layers, output error %.3g", len(factors), error)

    def _manifest(self, files: dict[str, FileEntry]) -> Manifest:
        config, records = self._config, self.learner.records
        form = "diffusers" if "diffusers" in config.spec.output.formats else "kohya"
        adapter = files[FILE_NAMES[form]]
        tenth = math.ceil(len(records) / 10)
        return Manifest(
            namespace=config.namespace,
            name=config.name,
            uid=config.uid,
            attempt=config.attempt,
            input_hash=config.input_hash,
            adapter=AdapterStatus(
                uri=self._bucket.uri(adapter.key),
                sha256=adapter.sha256,
                bytes=adapter.bytes,
                format=form,
                manifest_key=config.keys.manifest(config.attempt),
                report_key=config.keys.report(config.attempt),
            ),
            concept=config.spec.concept,
            base_model=config.base_model,
            resolution=self._training.resolution,
            files=[*files.values(), *self._gallery.files],
            previews=self._gallery.previews,
            steps=len(records),
            seed=self._training.seed,
            first_loss=mean_loss(records[:tenth]) or 0.0,
            final_loss=mean_loss(records[-tenth:]) or 0.0,
            selection=self._selection() if self._training.validation.every_steps else None,
            versions={"lora_trainer": __version__, **{name: version(name) for name in LIBRARIES}},
        )

    def _selection(self) -> Selection:
        records, validation = self.learner.records, self._training.validation
        step = best_step(records, validation) or len(records)
        return Selection(
            publish=validation.publish,
            step=step,
            held_out_loss=records[step - 1].held_out_loss,
            stopped_early=len(records) < self._training.max_steps,
        )

    def _tell(self, manifest: Manifest, publish_seconds: float) -> str:
        """The report as HTML."""
        records, device = self.learner.records, self.learner.state.device
        layers, captions = self._folder / LAYERS, self._fetch(self._config.keys.captions_manifest)
        timing = Timing(self._prepare_seconds, sum(record.seconds for record in records), publish_seconds)
        facts = Facts(
            config=self._config,
            manifest=manifest,
            records=records,
            trained_on=self._shown,
            bases=self._gallery.bases,
            captions=CaptionsManifest.model_validate_json(captions) if captions else None,
            timing=timing,
            device=_name(device),
            fetch=self._fetch,
            layers=json.loads(layers.read_text()) if self._extracts else None,
        )
        return render(facts)

    def _fetch(self, key: str) -> bytes | None:
        try:
            return self._bucket.get(key)
        except ObjectMissingError:
            return None

    def _save(self) -> None:
        learner = self.learner
        tensors, rest = optimizer_state(learner.optimizer)
        state = {
            "optimizer": rest,
            "rates": learner.rates.state_dict(),
            "scaler": learner.scaler.state_dict(),
            "records": [asdict(record) for record in learner.records],
            "gallery": self._gallery.state(),
        }
        weights = {name: parameter.detach() for name, parameter in learner.parameters.items()}
        weights |= {BEST + name: value for name, value in self._best.items()}
        self._checkpoints.save(Checkpoint(learner.step, weights, tensors, state))

    def _draw(self, with_base: bool) -> None:
        self._gallery.draw(self._folder, self.learner.step, self._model, self._adapted, with_base)

    def _upload(self, path: Path) -> FileEntry:
        return self._bucket.put_file(self._config.keys.attempt(self._config.attempt) + path.name, path)

    def _report(self, reporter: Reporter) -> None:
        recent = self.learner.records[-SMOOTHING:]
        seconds, loss = fmean(record.seconds for record in recent), mean_loss(recent)
        if self.learner.step % SMOOTHING == 0:
            log.info("step %d of %d, loss %s", self.learner.step, self._training.max_steps, loss)
        reporter.update(
            self.learner.step,
            self._training.max_steps,
            loss=loss,
            steps_per_second=1 / seconds if seconds else None,
        )


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}"
