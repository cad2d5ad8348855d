"""Lets the workers of a launch use simulated devices, where this folder is on PYTHONPATH.

FAULT_RANK names a worker whose second step runs out of memory.
"""

from __future__ import annotations

import os

if "RANK" in os.environ:
    from tests.cuda import simulated_cuda, simulated_group  # noqa: F401 - before torch

    simulated_group.install()
    if os.environ["RANK"] == os.environ.get("FAULT_RANK"):
        import torch

        from lora_trainer.train import loop

        accumulate = loop.accumulate

        def failing(state: loop.TrainState, step: int) -> torch.Tensor:
            if step == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return accumulate(state, step)

        loop.accumulate = failing
