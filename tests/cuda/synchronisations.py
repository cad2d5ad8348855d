"""Count how often a step waits for the simulated device: `python -m tests.cuda.synchronisations OPTIMIZER...`.

It prints one JSON line: the waits of a step by optimizer. The UNet is a tiny one; the number does not depend on its
size, unless an optimizer waits for each parameter.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from . import simulated_cuda

# isort: split
import torch

from benchmarks.synthetic import build_state
from lora_api.job import Training
from lora_trainer.train import loop
from lora_trainer.train.model.tiny import write_tiny_sdxl

OPTIMIZERS = ("AdamW", "AdamW8bit", "Prodigy", "Adafactor", "CAME", "ProdigyScheduleFree")
SKIPPED = 2
"""First steps, in which an optimizer creates its states."""


class Counter:
    """A hook that records the number of synchronisations so far after each step."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def after_step(self, state: loop.TrainState) -> None:
        self.counts.append(simulated_cuda.synchronisations())


def count(optimizer: str, folder: Path) -> int:
    """Return the largest number of synchronisations in a step."""
    rate = {} if "Prodigy" in optimizer else {"learningRate": "1e-4"}
    training = Training.model_validate(
        {"optimizer": optimizer, "maxSteps": 6, "resolution": 64, "compile": "Never", **rate}
    )
    state, counter = build_state(training, folder), Counter()
    loop.train(state, lambda: False, [counter])
    counts = counter.counts[SKIPPED:]
    return max(after - before for before, after in pairwise(counts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        write_tiny_sdxl(Path(temporary))
        names = sys.argv[1:] or OPTIMIZERS
        print(json.dumps({name: count(name, Path(temporary)) for name in names}))
