"""Run training stages on the simulated device, in a process that stays: `python -m tests.cuda.run_jobs`.

Each line on stdin is a `Request` in JSON, and each line on stdout the outcome of one. With LORA_TEST_GPU=1 the stages
run on this machine's GPU.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from .build import REAL_GPU

if not REAL_GPU:
    from . import simulated_cuda, simulated_graphs

# isort: split
import torch
from diffusers import AutoencoderKL

from lora_api.stages import TrainConfig
from lora_trainer.progress import Reporter
from lora_trainer.runtime import explain, load_config
from lora_trainer.train import context, graphs, loop, stage

TEXTS: dict[str, str] = {
    "step": "CUDA error: out of memory",
    "cublas": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
}
"""Messages of errors for a full memory, by fault."""
GPUS = {"V100": ("Tesla V100", (7, 0)), "T4": ("Tesla T4", (7, 5)), "": ("Simulated GPU", (9, 0))}
"""Name and compute capability that the device reports, by `Request.gpu`."""
REPAID_AFTER = 6
"""Replays that must be left for a capture with `compile: Auto`, in the place of `graphs.REPAID_AFTER`."""
WAIT = 0.2
"""Seconds that each wait of the CPU for the device takes with the fault `slow`: in the update of a step, and in
`torch.cuda.synchronize`."""


@dataclass(frozen=True)
class Request:
    """A stage to run."""

    config: str
    """Path of the stage's configuration."""
    gpu: str = ""
    """Name in `GPUS`."""
    fault: str = ""
    """`preview`: decoding an image runs out of memory. `step`, `cublas`: the third step does, unless gradient
    checkpointing is on, with the text of CUDA's runtime or of cuBLAS. `capture`: no CUDA graph can be captured.
    `slow`: see `WAIT`. `stop`: the stage is asked to stop in its second step."""


@contextmanager
def injected(fault: str) -> Iterator[None]:
    """Inject a fault within the block."""
    accumulate, update, sample_losses = loop.accumulate, loop._update, loop.sample_losses

    def decode(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB")

    def failing(state: loop.TrainState, step: int) -> torch.Tensor:
        if step == 2 and not state.unet.is_gradient_checkpointing:
            raise RuntimeError(TEXTS[fault])
        return accumulate(state, step)

    def reading(*args: Any) -> torch.Tensor:
        found = sample_losses(*args)
        found.sum().item()  # which no capture on a GPU allows
        return found

    def stopping(state: loop.TrainState, step: int) -> torch.Tensor:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return accumulate(state, step)

    def slowly(*args: Any) -> Any:
        # Only here: the rest of the stage reads hundreds of tensors back, and would wait at each.
        simulated_cuda.set_wait(WAIT)
        try:
            return update(*args)
        finally:
            simulated_cuda.set_wait(0)

    match fault:
        case "preview":
            with patch.object(AutoencoderKL, "decode", decode):
                yield
        case "capture" if REAL_GPU:
            with patch.object(loop, "sample_losses", reading):
                yield
        case "capture":
            refusals = [simulated_graphs.FAILED] * 100
            with patch.object(simulated_graphs, "REFUSALS", refusals):
                yield
        case "step" | "cublas":
            with patch.object(loop, "accumulate", failing):
                yield
        case "slow":
            simulated_cuda.DEVICE.wait = WAIT
            try:
                with patch.object(loop, "_update", slowly):
                    yield
            finally:
                simulated_cuda.DEVICE.wait = 0
        case "stop":
            with patch.object(loop, "accumulate", stopping):
                yield
        case _:
            yield


class Messages(logging.Handler):
    """Collects the trainer's log messages."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def run(request: Request) -> dict[str, Any]:
    """Run a stage and return its exit code, its result, and what was observed on the device."""
    if not REAL_GPU:
        simulated_cuda.DEVICE.name, simulated_cuda.DEVICE.capability = GPUS[request.gpu]
    messages, made, encoders = Messages(), [], []
    make_graphs, encode_posterior = graphs.make_graphs, AutoencoderKL.encode

    def make(*args: Any) -> graphs.PassGraphs | None:
        made.append(make_graphs(*args))
        return made[-1]

    def watched(vae: AutoencoderKL, pixels: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if pixels.is_cuda:  # not the memory plan's, whose tensors have no data
            encoders.append(str(vae.dtype).removeprefix("torch."))
        return encode_posterior(vae, pixels, *args, **kwargs)

    logger = logging.getLogger("lora_trainer")
    logger.setLevel(logging.INFO)
    logger.addHandler(messages)
    reporter = Reporter("127.0.0.1", 0)
    try:
        with (
            patch.object(context, "make_graphs", make),
            patch.object(graphs, "REPAID_AFTER", REPAID_AFTER),
            patch.object(AutoencoderKL, "encode", watched),
            injected(request.fault),
        ):
            result, code = stage.work(load_config(Path(request.config), TrainConfig), reporter), 0
    except BaseException as error:
        result, code = explain(error)
    finally:
        reporter.close()
        logger.removeHandler(messages)
    used = [each for each in made if each]
    return {
        "code": int(code),
        "result": result.to_wire(),
        "captures": sum(each.captures for each in used),
        "replays": sum(each.replays for each in used),
        "allocating": 0 if REAL_GPU else len(simulated_graphs.ALLOCATING),
        "reserved_pools": 0 if REAL_GPU else sum(users > 0 for users in simulated_graphs.POOLS.values()),
        "encoders": sorted(set(encoders)),
        "log": messages.texts,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with suppress(BrokenPipeError):
        for line in sys.stdin:
            print(json.dumps(run(Request(**json.loads(line)))), flush=True)
