"""The entry point of the training container, which runs one worker, or several under `accelerate launch`.

accelerate's launcher turns every failure into exit code 1, and does not forward signals. So the workers write
their process ids and exit codes to a folder. This process reads them to forward signals and to return the
exit code.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from lora_api.exits import ExitCode
from lora_api.job import TrainResources
from lora_api.log_lines import configure_stderr
from lora_api.reasons import Reason
from lora_api.stages import Outcome, StageResult, TrainConfig

from ..errors import InterruptedStageError, StageError
from ..runtime import explain, load_config, write_result

log = logging.getLogger("lora_trainer.launch")
FOLDER_VARIABLE = "LORA_WORKERS"
POLL_SECONDS = 0.1


def main(config_path: Path) -> int:
    """Run the training stage's workers to their end and return their exit code."""
    configure_stderr("%(asctime)s %(message)s")
    try:
        config = load_config(config_path, TrainConfig)
    except StageError as error:
        log.error("%s", error)
        return error.exit_code
    with tempfile.TemporaryDirectory(prefix="workers-") as folder:
        command, environment = worker_command(config_path, config.spec.resources.train)
        stopped = _supervise(command, environment, Path(folder))
        code, failure = _exit_code(Path(folder)), _failure(Path(folder))
    # When another worker fails, the first one fails too, since it gets no answer, or the launcher ends it. The job's
    # result is then that of the other worker.
    if failure and not stopped and code != ExitCode.OK:
        log.error("worker failed: %s", failure[0].message)
        write_result(config, failure[0])
        return failure[1]
    if code is None and stopped:
        result, code = explain(InterruptedStageError("asked to stop before training started"))
        write_result(config, result)
    if code is None:
        message = "a worker was killed, possibly out of memory"
        log.error(message)
        write_result(
            config, StageResult(outcome=Outcome.FAILED, reason=Reason.INTERNAL_ERROR, message=message)
        )
        return ExitCode.INTERNAL
    return code


def worker_command(config_path: Path, resources: TrainResources) -> tuple[list[str], dict[str, str]]:
    """Build the command line of the workers, and their environment variables.

    A single worker is started without accelerate's launcher, which would only set these variables. Its imports take as
    long as those of the worker.
    """
    processes = max(resources.gpus, 1)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _cpus(resources.cpu) // processes))
    worker = ["-m", "lora_trainer", "train", "--config", str(config_path)]
    if processes == 1:
        on_cpu = str(resources.gpus == 0).lower()
        return [sys.executable, *worker], {"OMP_NUM_THREADS": threads, "ACCELERATE_USE_CPU": on_cpu}
    # Every setting is given, because accelerate warns about those that are missing.
    options = {
        "--num_processes": str(processes),
        "--num_machines": "1",
        "--mixed_precision": "no",  # the trainer casts its tensors itself
        "--dynamo_backend": "no",
        "--num_cpu_threads_per_process": threads,
    }
    words = [word for option in options.items() for word in option]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *words, "--multi_gpu", "--quiet"]
    return [*launcher, *worker], {}


def _cpus(requested: str) -> int:
    """Return the number of CPUs to use: as many as the job requests, but not more than the node has.

    With a thread for each CPU of the node, threads would compete with other pods, and the rounding of sums would
    depend on the node.

    Args:
        requested: a Kubernetes quantity such as "4" or "500m".
    """
    available = os.cpu_count() or 1
    if requested.endswith("m"):
        return min(math.ceil(float(requested[:-1]) / 1000), available)
    return min(math.ceil(float(requested)), available) if requested[-1].isdigit() else available


def register_worker() -> None:
    """Write this worker's process id, so that signals are forwarded to it. Call it once signals are handled."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        _write_number(Path(folder) / f"{os.environ.get('RANK', '0')}.pid", os.getpid())


def write_exit_code(code: int) -> None:
    """Write this worker's exit code. Call it just before the worker exits."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        _write_number(Path(folder) / f"{os.environ.get('RANK', '0')}.exit", code)


def write_worker_result(result: StageResult) -> None:
    """Write the result of a worker other than the first that failed. Call it before `write_exit_code`."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        path = Path(folder) / f"{os.environ.get('RANK', '0')}.result"
        partial = path.with_suffix(".result-part")
        partial.write_text(result.model_dump_json(by_alias=True))
        partial.replace(path)


def _failure(folder: Path) -> tuple[StageResult, int] | None:
    """Return the result and exit code of the worker that failed before the first worker; None if there is none.

    A worker that was merely stopped has not failed.
    """
    first = folder / "0.exit"
    end = first.stat().st_mtime_ns if first.exists() else None
    for path in sorted(folder.glob("*.result"), key=lambda path: path.stat().st_mtime_ns):
        result = StageResult.model_validate_json(path.read_text())
        code = path.with_suffix(".exit")
        if result.outcome == Outcome.FAILED and (end is None or path.stat().st_mtime_ns <= end):
            return result, int(code.read_text()) if code.exists() else ExitCode.INTERNAL
    return None


def _write_number(path: Path, number: int) -> None:
    """Write a file that appears only once it is complete."""
    partial = path.with_suffix(".part")
    partial.write_text(str(int(number)))
    partial.replace(path)


def _supervise(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> bool:
    """Run the launcher, or the single worker, to its end, and forward SIGTERM and SIGINT as SIGTERM to each worker that has started.

    If no worker has started, the process itself is terminated: there is no progress to save yet.

    Returns:
        Whether a signal came before any worker had started.
    """
    received: list[int] = []

    def record(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, record) for number in (signal.SIGTERM, signal.SIGINT)}
    variables = {
        "TRANSFORMERS_VERBOSITY": "error",
        **os.environ,
        **environment,
        FOLDER_VARIABLE: str(folder),
    }
    # In its own session, so that Ctrl-C reaches the workers only through this process.
    process = subprocess.Popen(command, env=variables, start_new_session=True)
    signalled: set[int] = set()
    ended = False
    try:
        while process.poll() is None:
            if received:
                _forward(folder, signal.SIGTERM, signalled)
                if not signalled and not ended:
                    os.killpg(process.pid, signal.SIGTERM)
                    ended = True
            time.sleep(POLL_SECONDS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return ended


def _forward(folder: Path, number: signal.Signals, signalled: set[int]) -> None:
    for path in folder.glob("*.pid"):
        worker = int(path.read_text())
        if worker not in signalled:
            signalled.add(worker)
            try:
                os.kill(worker, number)
            except ProcessLookupError:
                log.info("worker %d has already exited", worker)


def _exit_code(folder: Path) -> int | None:
    """Return the first worker's exit code, or else that of another worker that failed; None if there is none."""
    codes = {int(path.stem): int(path.read_text()) for path in folder.glob("*.exit")}
    if 0 in codes:
        return codes[0]
    return next((code for _, code in sorted(codes.items()) if code), None)
