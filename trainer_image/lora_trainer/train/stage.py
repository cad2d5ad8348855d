"""The training stage: trains an adapter from a stage configuration, verifies it and publishes it."""

from __future__ import annotations

import logging
import os
import time
from datetime import timedelta
from pathlib import Path

import diffusers
import transformers
from accelerate import PartialState

from lora_api.manifest import Manifest
from lora_api.reasons import Reason
from lora_api.stages import Outcome, StageResult, TrainConfig, TrainingResult
from lora_api.status import write_number

from ..errors import InterruptedStageError, StageError
from ..progress import Reporter
from ..runtime import explain, load_config, run_stage
from ..store import Store
from .export.publish import find_published
from .interruption import Interruption
from .launch import register_worker, write_exit_code, write_worker_result
from .memory.errors import is_out_of_memory
from .trainer import Trainer
from .validation import check_gpu, choose_cpu, choose_dtype, find_emulation
from .variants import VariantTrainer

log = logging.getLogger(__name__)
GROUP_TIMEOUT = timedelta(hours=6)
"""Time that a process waits for the others. NCCL's default of 10 minutes is too short for fetching a model."""


def main(config_path: Path) -> int:
    """Run the training stage in this worker. Only the first worker serves progress and writes the result."""
    if int(os.environ.get("RANK", "0")) == 0:
        code = run_stage(config_path, TrainConfig, work)
    else:
        code = _run_other_worker(config_path)
    write_exit_code(code)
    return code


def _run_other_worker(config_path: Path) -> int:
    """Run the stage in a worker other than the first."""
    reporter = Reporter("127.0.0.1", 0)  # on any free port: nothing reads it
    try:
        work(load_config(config_path, TrainConfig), reporter)
    except BaseException as error:
        result, code = explain(error)
        write_worker_result(result)
        return code
    finally:
        reporter.close()
    return 0


def work(config: TrainConfig, reporter: Reporter) -> StageResult:
    """Train the adapter that a stage configuration describes, publish and verify it.

    Raises:
        StageError: for every expected failure.
    """
    interruption = Interruption()
    with interruption.watched():
        register_worker()
        try:
            return _work(config, reporter, interruption)
        except StageError:
            raise
        except Exception as error:
            if interruption.asked:  # a library may replace KeyboardInterrupt by its own error
                raise InterruptedStageError("asked to stop") from error
            raise


def _work(config: TrainConfig, reporter: Reporter, interruption: Interruption) -> StageResult:
    """Return the result of an earlier publication if there is one; otherwise train, publish and verify."""
    started = time.monotonic()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    # Several processes need a long timeout: they wait while the first fetches, encodes and generates class images.
    distributed = PartialState(cpu=choose_cpu(config), **_process_group_options())
    check_gpu(config.spec.training, distributed.device)
    dtype = choose_dtype(config.spec.training, distributed.device)
    if warning := find_emulation(config.spec.training, distributed.device):
        log.warning(warning)
    store = Store(config.store)
    manifest = find_published(store.output, config)
    if manifest:
        return _result(config, manifest, TrainingResult(final_step=manifest.steps))
    kind = VariantTrainer if config.spec.training.variants else Trainer
    trainer = kind(config, store, distributed, dtype)
    try:
        trainer.setup()
        resumed_from = trainer.resume()
        if not trainer.run_phases(interruption, reporter):
            raise InterruptedStageError(f"asked to stop; step {trainer.step} is saved")
        manifest = trainer.publish() if distributed.is_main_process else None
    except Exception as error:
        if is_out_of_memory(error):
            raise trainer.out_of_memory_error() from error
        raise
    training = TrainingResult(
        resumed_from_step=resumed_from,
        seconds=int(time.monotonic() - started),
        final_step=trainer.step,
    )
    return _result(config, manifest, training)


def _process_group_options() -> dict[str, object]:
    return {"timeout": GROUP_TIMEOUT} if int(os.environ.get("WORLD_SIZE", "1")) > 1 else {}


def _result(config: TrainConfig, manifest: Manifest | None, training: TrainingResult) -> StageResult:
    result = StageResult(
        outcome=Outcome.TRAINED, reason=Reason.TRAINED, input_hash=config.input_hash, training=training
    )
    if manifest is None:
        return result
    return result.model_copy(
        update={
            "message": f"the adapter is at {manifest.adapter.uri}, sha256 {manifest.adapter.sha256}",
            "adapter": manifest.adapter,
            "previews": manifest.previews,
            "training": training.model_copy(update={"final_loss": write_number(manifest.final_loss)}),
        }
    )
