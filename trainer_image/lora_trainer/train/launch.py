"""The training container's entry point: workers under `accelerate launch`, their signals and their exit code.

accelerate's launcher turns every failure into exit code 1, and does not pass signals on. So the workers leave
their process number and their exit code in a folder, and this process does both.
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
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from lora_api.exits import ExitCode
from lora_api.job import TrainResources
from lora_api.reasons import Reason
from lora_api.steps import Outcome, StepResult, TrainStep

from ..errors import InterruptedStepError, StepError
from ..runtime import explain, load_config, write_result

log = logging.getLogger("lora_trainer.launch")
FOLDER_VARIABLE = "LORA_WORKERS"
POLL_SECONDS = 0.1


def main(config_path: Path) -> int:
    """Run the training step's workers to their end and return the exit code that they ended with."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        config = load_config(config_path, TrainStep)
    except StepError as error:
        log.error("%s", error)
        return error.exit_code
    with tempfile.TemporaryDirectory(prefix="workers-") as folder:
        stopped = _supervise(accelerate_command(config_path, config.spec.resources.train), Path(folder))
        code = _exit_code(Path(folder))
    if code is None and stopped:
        result, code = explain(InterruptedStepError("told to stop before the work had begun"))
        write_result(config, result)
    if code is None:
        message = "a worker died without a word: it was killed, perhaps for want of memory"
        log.error(message)
        write_result(
            config, StepResult(outcome=Outcome.FAILED, reason=Reason.INTERNAL_ERROR, message=message)
        )
        return ExitCode.INTERNAL
    return code


def accelerate_command(config_path: Path, resources: TrainResources) -> list[str]:
    """The command line; every setting that accelerate would otherwise choose, and say so, is given."""
    gpus = resources.gpus
    processes = max(gpus, 1)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _cpus(resources.cpu) // processes))
    options = {
        "--num_processes": str(processes),
        "--num_machines": "1",
        "--mixed_precision": "no",  # the trainer casts for itself
        "--dynamo_backend": "no",
        "--num_cpu_threads_per_process": threads,
    }
    flags = (["--cpu"] if gpus == 0 else []) + (["--multi_gpu"] if gpus > 1 else [])
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *(word for option in options.items() for word in option),
        *flags,
        "--quiet",
        *("-m", "lora_trainer", "train", "--config", str(config_path)),
    ]


def _cpus(requested: str) -> int:
    """How many CPUs to use: what the job requests, at most what is there.

    A thread for each CPU of a node would wait for CPUs that belong to others, and sums would depend on the node.
    """
    there = os.cpu_count() or 1
    if requested.endswith("m"):
        return min(math.ceil(float(requested[:-1]) / 1000), there)
    return min(math.ceil(float(requested)), there) if requested[-1].isdigit() else there


def join_workers() -> None:
    """Called by a worker once it handles signals: say which process it is, so that they reach it."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        _leave(Path(folder) / f"{os.environ.get('RANK', '0')}.pid", os.getpid())


def leave_exit_code(code: int) -> None:
    """Called by a worker as it ends."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        _leave(Path(folder) / f"{os.environ.get('RANK', '0')}.exit", code)


def _leave(path: Path, number: int) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(str(int(number)))
    partial.replace(path)


def _supervise(command: Sequence[str], folder: Path) -> bool:
    """Run the launcher to its end; pass SIGTERM and SIGINT on to each worker that is there.

    While none is, which takes as long as libraries are imported, the launcher itself is ended: nothing is lost.

    Returns:
        Whether a signal came before a worker was there.
    """
    asked: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    environment = {"TRANSFORMERS_VERBOSITY": "error", **os.environ, FOLDER_VARIABLE: str(folder)}
    # A session of its own, so that Ctrl-C reaches the workers through here only.
    launcher = subprocess.Popen(command, env=environment, start_new_session=True)
    told: set[int] = set()
    ended = False
    try:
        while launcher.poll() is None:
            if asked:
                _tell(folder, signal.SIGTERM, told)
                if not told and not ended:
                    os.killpg(launcher.pid, signal.SIGTERM)
                    ended = True
            time.sleep(POLL_SECONDS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return ended


def _tell(folder: Path, number: signal.Signals, told: set[int]) -> None:
    for path in folder.glob("*.pid"):
        process = int(path.read_text())
        if process not in told:
            told.add(process)
            try:
                os.kill(process, number)
            except ProcessLookupError:
                log.info("worker %d has ended already", process)


def _exit_code(folder: Path) -> int | None:
    """The first worker's code; else that of any other which failed; None when none could say it."""
    codes = {int(path.stem): int(path.read_text()) for path in folder.glob("*.exit")}
    if 0 in codes:
        return codes[0]
    return next((code for _, code in sorted(codes.items()) if code), None)
