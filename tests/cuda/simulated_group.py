"""A process group of simulated devices: NCCL's calls go to gloo, on copies in CPU memory."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

LONGEST_WAIT = timedelta(hours=1)
"""A process may wait this long for the others at least, while the first fetches a model and encodes images."""


def install() -> None:
    """Replace the functions of `torch.distributed` that the trainer and accelerate call."""
    init, all_reduce, broadcast, barrier = (
        dist.init_process_group,
        dist.all_reduce,
        dist.broadcast,
        dist.barrier,
    )

    def simulated_init(backend: str, timeout: timedelta | None = None, **options: Any) -> None:
        assert backend == "nccl", backend
        assert timeout is not None, "NCCL's default of 10 minutes is too short"
        assert timeout > LONGEST_WAIT, timeout
        options.pop("device_id", None)
        init(backend="gloo", timeout=timeout, **options)

    def on_cpu(function: Any) -> Any:
        def run(tensor: Tensor, *args: Any, **options: Any) -> None:
            copy = tensor.detach().cpu()
            function(copy, *args, **options)
            with torch.no_grad():
                tensor.copy_(copy)

        return run

    functions: dict[str, Any] = {
        "init_process_group": simulated_init,
        "all_reduce": on_cpu(all_reduce),
        "broadcast": on_cpu(broadcast),
        "barrier": lambda *_, **__: barrier(),
    }
    for name, function in functions.items():
        setattr(dist, name, function)
        setattr(dist.distributed_c10d, name, function)
