"""The training step, from its file to a verified adapter in the store."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import diffusers
import torch
import transformers
from accelerate import PartialState

from lora_api.manifest import Manifest
from lora_api.reasons import Reason
from lora_api.steps import Outcome, StepResult, TrainingResult, TrainStep

from ..errors import InterruptedStepError, StepError
from ..progress import Reporter
from ..runtime import explain, load_config, run_step
from ..store import Store
from .allocator import keep_freed_memory
from .interruption import Interruption
from .launch import join_workers, leave_exit_code
from .publish import find_published
from .session import Session
from .settings import choose_cpu, choose_dtype, refuse_unsupported

log = logging.getLogger(__name__)


def main(config_path: Path) -> int:
    """Run the training step as one worker; of several, only the first serves progress and leaves a result."""
    if int(os.environ.get("RANK", "0")) == 0:
        code = run_step(config_path, TrainStep, work)
    else:
        code = _assist(config_path)
    leave_exit_code(code)
    return code


def _assist(config_path: Path) -> int:
    reporter = Reporter("127.0.0.1", 0)
    try:
        work(load_config(config_path, TrainStep), reporter)
    except BaseException as error:
        return explain(error)[1]
    finally:
        reporter.close()
    return 0


def work(config: TrainStep, reporter: Reporter) -> StepResult:
    """Train the adapter that a step file describes, publish and verify it.

    Raises:
        StepError: for every failure that has a name.
    """
    interruption = Interruption()
    with interruption.watched():
        join_workers()
        try:
            return _work(config, reporter, interruption)
        except torch.OutOfMemoryError as error:
            raise StepError(
                "the GPU's memory is full: set training.gradientCheckpointing to Always, "
                "lower training.resolution, batchSize or rank, or use a larger GPU",
                Reason.OUT_OF_MEMORY,
            ) from error
        except StepError:
            raise
        except Exception as error:
            if interruption.asked:  # a library may turn the interruption into an error of its own
                raise InterruptedStepError("told to stop") from error
            raise


def _work(config: TrainStep, reporter: Reporter, interruption: Interruption) -> StepResult:
    begun = time.monotonic()
    keep_freed_memory()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    refuse_unsupported(config.spec.training)
    state = PartialState(cpu=choose_cpu(config))
    dtype = choose_dtype(config.spec.training, state.device)
    store = Store(config.store)
    manifest = find_published(store.output, config)
    if manifest:
        return _result(config, manifest, TrainingResult(final_step=manifest.steps))
    session = Session(config, store, state, dtype)
    resumed_from = session.resume()
    with interruption.deferred():
        done = session.train(lambda: interruption.asked, reporter)
    if not done:
        raise InterruptedStepError(f"told to stop; step {session.learner.step} is saved")
    manifest = session.publish() if state.is_main_process else None
    training = TrainingResult(
        resumed_from_step=resumed_from,
        seconds=int(time.monotonic() - begun),
        final_step=session.learner.step,
    )
    return _result(config, manifest, training)


def _result(config: TrainStep, manifest: Manifest | None, training: TrainingResult) -> StepResult:
    result = StepResult(
        outcome=Outcome.TRAINED, reason=Reason.TRAINED, input_hash=config.input_hash, training=training
    )
    if manifest is None:
        return result
    return result.model_copy(
        update={
            "message": f"the adapter is at {manifest.adapter.uri}, sha256 {manifest.adapter.sha256}",
            "adapter": manifest.adapter,
            "previews": manifest.previews,
            "training": training.model_copy(update={"final_loss": f"{manifest.final_loss:.4f}"}),
        }
    )
