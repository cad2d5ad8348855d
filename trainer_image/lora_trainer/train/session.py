"""One training run: what it loads, how it resumes, what it saves, and how an extraction goes on from the tuned model."""

from __future__ import annotations

import gc
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from lora_api.job import Method
from lora_api.manifest import Manifest
from lora_api.steps import TrainStep

from ..progress import Reporter
from ..store import Store
from .adapter import TEXT_ENCODERS, UNET, add_adapter, trainable
from .average import Average
from .base_model import TextTower, provide_base_model
from .checkpoint import Checkpoint, Checkpoints
from .encode import Encoders, TextEmbedding, encode_text
from .extract import extract, make_trainable, prepare_adapter, put_adapter, ranks_of, report, tuned_weights
from .fused import fuse
from .gallery import Gallery
from .lean import make_lean
from .loop import Learner, batches, train
from .objective import predict
from .optimizers import (
    build_optimizer,
    build_schedule,
    continue_schedule,
    optimizer_state,
    restore_optimizer,
)
from .plan import Machine, footprints, free_memory, make_plan
from .quantize import quantize
from .records import Record, best_step, mean_loss
from .results import Results, upload
from .samples import gather

log = logging.getLogger(__name__)
BEST, AVERAGE = "best ", "average "
"""Before the names, in a checkpoint, of what the best step's result was, and of the average over the steps."""
SMOOTHING = 20
"""Steps that the reported loss and speed are means over."""


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
        self._state = state
        self._dtype = dtype
        self._training = training = config.spec.training
        work = Path(config.work_dir)
        self._folder = work / f"attempt-{config.attempt}"
        if state.is_main_process:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        self._gallery = Gallery(config, partial(upload, self._bucket, config), self._embed)
        self._checkpoints = Checkpoints(
            store.output, config.keys, config.input_hash, training.checkpoint.keep_last, work
        )
        self._towers: tuple[TextTower, TextTower] | None = None
        """Only where the text encoders learn too."""
        with state.main_process_first():  # the first fills the caches, the others read them
            self._model = provide_base_model(config, store.input)
            encoders = Encoders(self._model, work / "cache", state.device, dtype)
            self._samples = gather(config, self._bucket, encoders)
            live = training.text_encoder.train
            texts = ["", *self._samples.captions, *self._gallery.prompts]
            self._texts = {} if live else encoders.texts(texts)
        self._best: dict[str, Tensor] = {}
        """What the result was after the step that is to be published, where that is not the last."""
        self._layers: dict[str, object] | None = None
        """What `extract.report` said of the extraction, once there was one."""
        self._tunes = training.method == Method.DREAMBOOTH_EXTRACT
        """Whether the UNet itself learns now."""
        self.learner = self._begin()
        self._prepare_seconds = time.monotonic() - begun

    def _begin(self) -> Learner:
        """Plan the memory, load what learns first, and all that makes it learn."""
        training, dtype, device = self._training, self._dtype, self._state.device
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what the encoders had
        machine = Machine(device.type, free_memory(device), footprints(self._config))
        plan = make_plan(training, self._model.folder, machine, dtype)
        log.info("memory:\n%s", plan)
        self._checkpointing = plan.checkpointing
        unet = self._model.unet(torch.float32 if self._tunes else dtype)
        quantize(unet, training.quantize_base)
        self._adapted: dict[str, Any] = {UNET: unet.to(device)}
        if training.text_encoder.train:
            self._towers = self._model.text_towers(dtype)
            for name, tower in zip(TEXT_ENCODERS, self._towers, strict=True):
                self._adapted[name] = tower.encoder.to(device)
        if self._tunes:
            make_trainable(unet, training.extraction.convolutions)
            return self._learn(range(training.max_steps - training.extraction.factor_steps))
        for name, module in self._adapted.items():
            add_adapter(module, name, training.rank, training.alpha, training.seed, kind=training.adapter)
        return self._learn(range(training.max_steps))

    def _learn(self, steps: range) -> Learner:
        """All that makes the modules' parameters learn in some of the job's steps."""
        training, unet = self._training, self._adapted[UNET]
        if self._checkpointing:
            unet.enable_gradient_checkpointing()
        unet.train()
        for module in self._adapted.values():
            fuse(module)
        make_lean(unet)
        parameters = trainable(self._adapted)
        optimizer = build_optimizer(training, parameters)
        scales = self._dtype == torch.float16
        return Learner(
            state=self._state,
            training=training,
            unet=unet,
            schedule=self._model.noise_schedule(),
            sources=self._samples.sources,
            texts=self._embed,
            parameters=parameters,
            optimizer=optimizer,
            rates=build_schedule(training, optimizer),
            scaler=torch.amp.GradScaler(self._state.device.type, enabled=scales),
            dtype=self._dtype,
            steps=steps,
            average=Average(parameters, float(training.ema_decay)) if training.ema_decay else None,
            held_out=self._samples.held_out,
        )

    def _embed(self, text: str) -> TextEmbedding:
        """A text's embedding: now, through encoders that learn, or from the cache."""
        return encode_text(self._towers, text) if self._towers else self._texts[text]

    def resume(self) -> int | None:
        """Take up the newest sound checkpoint; its step, or None where training starts at the beginning."""
        found = self._checkpoints.newest()
        if found is None:
            return None
        if self._tunes and found.step > self.learner.steps.stop:
            training, unet = self._training, self.learner.unet
            prepare_adapter(unet, ranks_of(found.weights), training.rank, training.alpha)
            self._tunes = False
            self.learner = self._learn(range(self.learner.steps.stop, training.max_steps))
        learner = self.learner
        with torch.no_grad():
            for name, parameter in learner.parameters.items():
                parameter.copy_(found.weights[name])
                if learner.average:
                    learner.average.values[name].copy_(found.weights[AVERAGE + name])
        self._best = {
            name.removeprefix(BEST): tensor for name, tensor in found.weights.items() if name.startswith(BEST)
        }
        self._layers = found.state["layers"]
        restore_optimizer(learner.optimizer, found.optimizer, found.state["optimizer"])
        learner.rates.load_state_dict(found.state["rates"])
        learner.scaler.load_state_dict(found.state["scaler"])
        learner.records = [Record(**record) for record in found.state["records"]]
        self._gallery.restore(found.state["gallery"])
        log.info("resuming after step %d", learner.step)
        return learner.step

    def train(self, asked_to_stop: Callable[[], bool], reporter: Reporter) -> bool:
        """Train to the end or to the next stop, saving on the way; whether the end was reached."""
        training, stopped = self._training, False

        def after_step(stop: bool) -> None:
            nonlocal stopped
            stopped = stop
            if not self._state.is_main_process:
                return
            learner = self.learner
            step, last = learner.step, learner.is_done
            self._report(reporter)
            if best_step(learner.records, training) == step:
                self._best = {name: value.detach().cpu().clone() for name, value in learner.result.items()}
            every = training.preview.every_steps
            if every and step % every == 0 and not self._is_over:
                with learner.showing_result():
                    self._draw(with_base=False)
            due = stop or last or step % training.checkpoint.every_steps == 0
            if due and learner.is_sound(learner.records[-1]):
                self._save()

        train(self.learner, asked_to_stop, after_step)
        if self.learner.is_done and not self._is_over and not stopped:
            self._take_out()
            train(self.learner, asked_to_stop, after_step)
        self._state.wait_for_everyone()  # a worker that leaves early would have the others killed
        return self._is_over

    @property
    def _is_over(self) -> bool:
        """Whether nothing more is trained, neither by this learner nor by one after it."""
        return self.learner.is_done and self.learner.steps.stop == self._training.max_steps

    def publish(self) -> Manifest:
        """Draw, write, verify and publish the adapter, and what tells of it; the manifest last."""
        begun = time.monotonic()
        if self._tunes:
            self._take_out()
        else:
            self._settle()
        self._draw(with_base=True)
        results = Results(
            config=self._config,
            bucket=self._bucket,
            folder=self._folder,
            learner=self.learner,
            adapted=self._adapted,
            gallery=self._gallery,
            shown=self._samples.shown,
            layers=self._layers,
            prepare_seconds=self._prepare_seconds,
            begun=begun,
        )
        return results.publish()

    @torch.no_grad()
    def _settle(self) -> None:
        """Let the parameters be what is to be published: as the best step left them, or their result."""
        for name, value in (self._best or self.learner.result).items():
            self.learner.parameters[name].copy_(value)

    def _take_out(self) -> None:
        """Take the adapter out of the fine-tuned UNet and put it on the base one, which takes its place."""
        self._settle()
        training, device = self._training, self._state.device
        records, rates = self.learner.records, self.learner.rates.state_dict()
        steps, schedule = range(self.learner.steps.stop, training.max_steps), self.learner.schedule
        base = self._model.unet(torch.float32)
        probe = batches(self.learner, range(1))[0]
        with torch.no_grad():
            wanted = predict(self.learner.unet.eval(), schedule, probe)
            tuned, before = (
                tuned_weights(unet, training.extraction.convolutions) for unet in (self.learner.unet, base)
            )
            factors = extract(tuned, before, training.rank, training.extraction)
        put_adapter(base, factors, training.rank, training.alpha)
        # The tuned model and its optimizer go before the base model comes to their device.
        del self.learner, self._adapted[UNET], tuned
        gc.collect()
        self._adapted[UNET] = base.to(device)
        self._best, self._tunes = {}, False
        self.learner = self._learn(steps)
        self.learner.records = records
        continue_schedule(self.learner.rates, rates)
        with torch.no_grad():
            found = predict(base.eval(), schedule, probe)
        base.train()
        error = float((found - wanted).norm() / wanted.norm())
        self._layers = report(factors, error)
        log.info("adapter taken out of %d layers, output error %.3g", len(factors), error)

    def _save(self) -> None:
        learner = self.learner
        tensors, rest = optimizer_state(learner.optimizer)
        state = {
            "optimizer": rest,
            "rates": learner.rates.state_dict(),
            "scaler": learner.scaler.state_dict(),
            "records": [asdict(record) for record in learner.records],
            "gallery": self._gallery.state(),
            "layers": self._layers,
        }
        weights = {name: parameter.detach() for name, parameter in learner.parameters.items()}
        weights |= {BEST + name: value for name, value in self._best.items()}
        if learner.average:
            weights |= {AVERAGE + name: value for name, value in learner.average.values.items()}
        self._checkpoints.save(Checkpoint(learner.step, weights, tensors, state))

    def _draw(self, with_base: bool) -> None:
        self._gallery.draw(self._folder, self.learner.step, self._model, self._adapted, with_base)

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
