"""The life of a step as a process: read the one file, work, leave a result, exit with a code that means something."""

from __future__ import annotations

import errno
import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from lora_api.exits import ExitCode
from lora_api.job import describe
from lora_api.reasons import Reason
from lora_api.steps import (
    AnnotateStep,
    Outcome,
    StepConfig,
    StepResult,
    TrainStep,
    encode_result,
    step_adapter,
)

from .errors import BadConfigurationError, BadSetupError, InterruptedStepError, StepError
from .progress import Reporter

log = logging.getLogger("lora_trainer")
Config = TypeVar("Config", AnnotateStep, TrainStep)


def load_config(path: Path, kind: type[Config]) -> Config:
    """Read and validate a step file.

    Raises:
        BadConfigurationError: naming the file and each field that is wrong.
    """
    try:
        config = step_adapter.validate_json(path.read_bytes())
    except OSError as error:
        raise BadConfigurationError(f"cannot read the step file {path}: {error.strerror}") from error
    except ValidationError as error:
        raise BadConfigurationError(f"{path}: {describe(error, 'step')}") from None
    if not isinstance(config, kind):
        raise BadConfigurationError(f"{path} configures the step {config.step!r}, not this one")
    return config


def run_step(path: Path, kind: type[Config], work: Callable[[Config, Reporter], StepResult]) -> int:
    """Run one step to its end and return the exit code; never raises."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        config = load_config(path, kind)
    except StepError as error:
        log.error("%s", error)
        return error.exit_code
    try:
        reporter = Reporter(config.progress_host, config.progress_port)
    except OSError as error:
        reporter = Reporter("127.0.0.1", 0)
        log.warning("progress is not served: port %s: %s", config.progress_port, error.strerror)
    try:
        result, code = work(config, reporter), ExitCode.OK
    except BaseException as error:
        result, code = explain(error)
    finally:
        reporter.close()
    write_result(config, result)
    log.info("%s: %s", result.reason, result.message or result.outcome)
    return code


def explain(error: BaseException) -> tuple[StepResult, ExitCode]:
    """The result and the exit code that an exception means."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        error = BadSetupError("the disk is full: give the work folder more room", Reason.DISK_FULL)
    if isinstance(error, KeyboardInterrupt):
        error = InterruptedStepError("told to stop")
    if isinstance(error, StepError):
        interrupted = isinstance(error, InterruptedStepError)
        outcome = Outcome.INTERRUPTED if interrupted else Outcome.FAILED
        result = StepResult(outcome=outcome, reason=error.reason, message=str(error), dataset=error.dataset)
        return result, error.exit_code
    traceback.print_exception(error)
    message = f"{type(error).__name__}: {error}; the pod's log has the trace"
    result = StepResult(outcome=Outcome.FAILED, reason=Reason.INTERNAL_ERROR, message=message)
    return result, ExitCode.INTERNAL


def write_result(config: StepConfig, result: StepResult) -> None:
    try:
        Path(config.termination_log).write_bytes(encode_result(result))
    except OSError as error:
        log.error("cannot write the result to %s: %s", config.termination_log, error)
