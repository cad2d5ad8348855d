"""The process of a stage: read the configuration, run, write the result, return a code of `lora_api.exits`."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from lora_api.exits import ExitCode
from lora_api.job import describe
from lora_api.log_lines import configure_stderr
from lora_api.reasons import Reason
from lora_api.stages import (
    AnnotateConfig,
    Outcome,
    StageConfig,
    StageResult,
    TrainConfig,
    encode_result,
    stage_config_adapter,
)

from .errors import BadConfigurationError, BadSetupError, InterruptedStageError, StageError
from .progress import Reporter

log = logging.getLogger("lora_trainer")
Config = TypeVar("Config", AnnotateConfig, TrainConfig)


def load_config(path: Path, kind: type[Config]) -> Config:
    """Read and validate a stage's configuration file.

    Raises:
        BadConfigurationError: when the file cannot be read or is invalid; the message names each invalid field.
    """
    try:
        config = stage_config_adapter.validate_json(path.read_bytes())
    except OSError as error:
        raise BadConfigurationError(f"cannot read the configuration {path}: {error.strerror}") from error
    except ValidationError as error:
        raise BadConfigurationError(f"{path}: {describe(error, 'stage')}") from None
    if not isinstance(config, kind):
        raise BadConfigurationError(f"{path} is the configuration of the stage {config.stage!r}")
    return config


def run_stage(path: Path, kind: type[Config], work: Callable[[Config, Reporter], StageResult]) -> int:
    """Run a stage and return its exit code. An exception in the stage becomes its result.

    Args:
        path: the configuration file.
        kind: the class of the stage's configuration.
        work: the stage itself.
    """
    configure_stderr("%(asctime)s %(message)s")
    try:
        config = load_config(path, kind)
    except StageError as error:
        log.error("%s", error)
        return error.exit_code
    try:
        reporter = Reporter(config.progress_host, config.progress_port)
    except OSError as error:
        # The stage can run without serving progress: a free port on loopback replaces the configured one.
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


def explain(error: BaseException) -> tuple[StageResult, ExitCode]:
    """Map an exception to a result and an exit code. An unexpected one is logged with its trace."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        error = BadSetupError("the disk is full: increase the size of the work folder", Reason.DISK_FULL)
    if isinstance(error, KeyboardInterrupt):
        error = InterruptedStageError("received a signal to stop")
    if isinstance(error, StageError):
        interrupted = isinstance(error, InterruptedStageError)
        outcome = Outcome.INTERRUPTED if interrupted else Outcome.FAILED
        result = StageResult(outcome=outcome, reason=error.reason, message=str(error), dataset=error.dataset)
        return result, error.exit_code
    log.error("an unexpected error", exc_info=error)
    message = f"{type(error).__name__}: {error}; the stage's log has the trace"
    result = StageResult(outcome=Outcome.FAILED, reason=Reason.INTERNAL_ERROR, message=message)
    return result, ExitCode.INTERNAL


def write_result(config: StageConfig, result: StageResult) -> None:
    """Write the result to the container's termination log, from which the operator reads it."""
    try:
        Path(config.termination_log).write_bytes(encode_result(result))
    except OSError as error:
        log.error("cannot write the result to %s: %s", config.termination_log, error)
