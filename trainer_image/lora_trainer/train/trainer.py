"""The trainer of a job. Call `setup`, `resume`, `run_phases` and `publish` in this order."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState

from lora_api.job import Crop, GradientCheckpointing, Training
from lora_api.manifest import Manifest, Memory, VariantResult
from lora_api.reasons import Reason
from lora_api.stages import TrainConfig

from ..errors import BadConfigurationError, StageError
from ..progress import Reporter
from ..store import Store
from ..units import GIB
from .checkpoint import Checkpoint, Checkpoints
from .context import TrainingContext
from .data.dataset import crop_image, to_image
from .data.encode import Encoders
from .data.training_data import TrainingData, load_training_data
from .export.results import Results, upload
from .hooks import GeneratePreviews, KeepBestWeights, MeasureScores, ReportProgress, SaveCheckpoints
from .interruption import Interruption
from .loop import Hook
from .memory.plan import TRACES, Machine, Plan, free_memory, make_plan, memory_advice
from .model.base_model import provide_base_model
from .model.initial_adapter import fetch_initial_adapter
from .model.token_embeddings import refuse_unnamed
from .phases import Phase, phases_of
from .sampling.previews import Previews, preview_prompts
from .scoring import Scorer, load_scorer

log = logging.getLogger(__name__)


class Trainer:
    """Takes a job from its configuration to a published adapter.

    Every process of a job has one. Only the main process saves, generates and publishes.
    """

    def __init__(
        self, config: TrainConfig, store: Store, distributed: PartialState, dtype: torch.dtype
    ) -> None:
        """
        Args:
            dtype: number format of the frozen base model.
        """
        self._started = time.monotonic()
        self._prepare_seconds = 0.0
        self._config = config
        self._store = store
        self._distributed = distributed
        self._dtype = dtype
        self._folder = Path(config.work_dir) / f"attempt-{config.attempt}"
        self._plan: Plan | None = None

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._context.state.step

    def setup(self) -> None:
        """Fetch the model, encode images and texts, and plan the memory.

        Raises:
            StageError: when the model or the images are unusable or cannot be fetched.
        """
        self._load()
        self._select(self._config)

    def _load(self) -> None:
        """Fetch the model, and encode images and texts."""
        config, distributed, dtype = self._config, self._distributed, self._dtype
        if distributed.is_main_process:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        with distributed.main_process_first():  # the first fills the caches, the others read them
            self._model = provide_base_model(config, self._store.input)
            encoders = Encoders(self._model, Path(config.work_dir) / "cache", distributed.device, dtype)
            self._data = load_training_data(config, self._store.output, encoders)
            texts = ["", *self._data.captions, *preview_prompts(config.spec)]
            training = config.spec.training
            if training.token_embeddings.train:
                refuse_unnamed(self._data.streams[0].all_captions, config.spec.concept.token)
            # Text encoders that are trained encode the captions in every step, so nothing is encoded here.
            encodes_once = not (training.text_encoder.train or training.token_embeddings.train)
            self._embeddings = encoders.encode_texts(texts) if encodes_once else {}
        if distributed.device.type == "cuda":
            torch.cuda.empty_cache()  # frees the memory of the encoders, as the plan assumes
        self._machine = Machine(distributed.device.type, free_memory(distributed.device), _traces(config))
        self._scorer = self._load_scorer(self._data)
        self._initial_adapter = self._fetch_initial_adapter()

    def _select(self, config: TrainConfig, variant: str = "") -> None:
        """Plan the memory of a training, and prepare its checkpoints and its context.

        Args:
            config: the job's configuration, with the settings of the variant.
        """
        self._checkpoints = Checkpoints(
            self._store.output,
            replace(config.keys, variant=variant),
            config.input_hash,
            config.spec.training.checkpoint.keep_last,
            Path(config.work_dir),
        )
        self._phases: Sequence[Phase] = phases_of(config.spec.training)
        plan = self._make_plan(config.spec.training)
        self._plan = plan
        for line in str(plan).splitlines():  # a line break within a record is escaped
            log.info("memory: %s", line)
        self._context = TrainingContext(
            config=config,
            distributed=self._distributed,
            dtype=self._dtype,
            model=self._model,
            data=self._data,
            embeddings=self._embeddings,
            previews=Previews(config, partial(upload, self._store.output, config), variant),
            folder=self._folder,
            gradient_checkpointing=plan.checkpointing,
            working_memory=plan.working_memory,
            scorer=self._scorer,
            initial_adapter=self._initial_adapter,
        )

    def _make_plan(self, training: Training) -> Plan:
        if training.gradient_checkpointing == GradientCheckpointing.AUTO and self._has_run_out_of_memory():
            log.info("gradient checkpointing is on: an earlier attempt ran out of memory without it")
            training = training.model_copy(update={"gradient_checkpointing": GradientCheckpointing.ALWAYS})
        return make_plan(training, self._model.folder, self._machine, self._dtype)

    def _fetch_initial_adapter(self) -> Path | None:
        initial, work = self._config.spec.training.initial, Path(self._config.work_dir)
        if initial is None:
            return None
        with self._distributed.main_process_first():
            return fetch_initial_adapter(initial, self._config.namespace, self._store.output, work)

    def _load_scorer(self, data: TrainingData) -> Scorer | None:
        training, distributed = self._config.spec.training, self._distributed
        if not training.validation.measures_scores:
            return None
        keep_shape = training.crop == Crop.BUCKETS
        references = [
            to_image(crop_image(each, training.resolution, keep_shape).pixels) for each in data.images
        ]
        with distributed.main_process_first():  # the first fills the cache
            return load_scorer(self._config, self._store.input, references, distributed.device)

    def resume(self) -> int | None:
        """Begin the first phase, or the phase that the newest undamaged checkpoint belongs to.

        Returns:
            The checkpoint's step; None where training starts at the beginning.
        """
        return self._begin(self._checkpoints.newest())

    def _begin(self, checkpoint: Checkpoint | None) -> int | None:
        if checkpoint:
            self._phases = _remaining(self._phases, checkpoint.step)
        self._phases[0].begin(self._context, checkpoint)
        self._prepare_seconds = time.monotonic() - self._started
        if checkpoint is None:
            return None
        log.info("resuming after step %d", checkpoint.step)
        return checkpoint.step

    def run_phases(self, interruption: Interruption, reporter: Reporter) -> bool:
        """Run the phases from the current one to the last, or until the process is asked to stop.

        Returns:
            Whether training is complete.
        """
        hooks = self._hooks(reporter)
        for number, phase in enumerate(self._phases):
            if not phase.run(self._context, interruption, hooks):
                break
            # After a request to stop, no further phase begins, unless no steps are left: then the job can publish.
            if self._context.state.stopped and any(later.steps for later in self._phases[number + 1 :]):
                break
        else:
            self._distributed.wait_for_everyone()
            return True
        # Wait, because the launcher kills the other workers as soon as one exits.
        self._distributed.wait_for_everyone()
        return False

    def publish(self) -> Manifest:
        """Generate the previews, then write, verify and publish the adapter. The manifest is published last."""
        started, context = time.monotonic(), self._context
        context.select_published_weights()
        context.release_optimizer()
        context.generate_previews(with_base=True)
        results = Results(
            config=context.config,
            bucket=self._store.output,
            folder=self._folder,
            state=context.state,
            modules=context.modules,
            token_embeddings=context.token_embeddings,
            previews=context.previews,
            shown=context.data.shown,
            layers=context.layers,
            prepare_seconds=self._prepare_seconds,
            started=started,
            memory=Memory(planned_bytes=self._plan.peak if self._plan else 0, peak_bytes=self._peak_bytes()),
            variants=self._variant_results(),
        )
        return results.publish()

    def _variant_results(self) -> Sequence[VariantResult]:
        """Return the results of all variants; none for a job without variants."""
        return ()

    def _peak_bytes(self) -> int | None:
        """Return the peak of the memory that PyTorch allocated on the GPU, in bytes; None on a CPU."""
        device = self._distributed.device
        return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None

    def out_of_memory_error(self) -> StageError:
        """Build the error for a GPU whose memory is full.

        If gradient checkpointing is `Auto` and was off, also mark in the store that the next attempt uses it.
        """
        device = self._distributed.device
        text = "the GPU's memory is full"
        if device.type == "cuda":
            text += f" (peak {torch.cuda.max_memory_allocated(device) / GIB:.2f} GiB)"
        auto = self._config.spec.training.gradient_checkpointing == GradientCheckpointing.AUTO
        if auto and self._plan and not self._plan.checkpointing:
            self._store.output.put(self._out_of_memory_key, b"{}", "application/json")
            return StageError(f"{text}: the next attempt uses gradient checkpointing", Reason.OUT_OF_MEMORY)
        return BadConfigurationError(
            f"{text}: {memory_advice(self._config.spec.training)}", Reason.OUT_OF_MEMORY
        )

    def _has_run_out_of_memory(self) -> bool:
        return self._store.output.exists(self._out_of_memory_key)

    @property
    def _out_of_memory_key(self) -> str:
        """Key of the mark, below the checkpoints, so that it outlives the pod and is removed with them."""
        return f"{self._config.keys.checkpoints}out-of-memory.json"

    def _hooks(self, reporter: Reporter) -> list[Hook]:
        # Every process keeps the best weights: an extraction starts from them on each.
        hooks: list[Hook] = [KeepBestWeights(self._context)]
        if self._context.scorer:
            hooks.insert(0, MeasureScores(self._context))  # runs first: the best step may be chosen by it
        if self._distributed.is_main_process:
            hooks = [
                self._report_progress(reporter),
                *hooks,
                GeneratePreviews(self._context),
                SaveCheckpoints(self._context, self._checkpoints),
            ]
        return hooks

    def _report_progress(self, reporter: Reporter) -> Hook:
        return ReportProgress(reporter, self._config.spec.training.max_steps)


def _remaining(phases: Sequence[Phase], step: int) -> Sequence[Phase]:
    """Select the phases from the one in which a checkpoint of this step was saved."""
    for number, phase in enumerate(phases):
        if step <= phase.steps.stop:
            return phases[number:]
    return phases[-1:]


def _traces(config: TrainConfig) -> Path:
    """Return the folder of cached traces: in the model cache, or in the work folder if the cache is read-only."""
    return Path(config.work_dir if config.prefetched else config.cache_dir) / TRACES
