"""Compare steps that run as CUDA graphs with eager steps on this machine's GPU: losses, time and the fallback.

Usage: python -m benchmarks.bench_graphs [--quick]

The UNet has SDXL's full size and random weights, created on the GPU, so nothing is downloaded. The trainer's own loop
runs. Each case trains the same steps several times: eagerly twice, which shows by how much kernels with atomic additions
differ from themselves, and with `training.compile: Always`. The last line of the output is machine-readable:

graph_speedup     eager time of a step divided by that of a graph, in the first case
loss_difference   largest difference of a loss between graphed and eager steps, of all cases
eager_difference  largest difference of a loss between the two eager runs
fallback          1 if a capture that fails leaves the losses of eager steps
auto              1 if Auto captures where Always is faster

    PYTHONPATH=crds:operator:trainer_image:. python -m benchmarks.bench_graphs
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
SDXL = ROOT / "trainer_image" / "lora_trainer" / "train" / "model" / "sdxl"
CASES: dict[str, dict[str, Any]] = {
    "rank 16": {},
    "checkpointing": {"gradientCheckpointing": "Always"},
    "accumulation": {"gradientAccumulationSteps": 2},
    "batch 4": {"batchSize": 4},
    "DoRA": {"adapter": {"useDoRA": True}},
}
QUICK = ("rank 16", "checkpointing")
TIMED = 5
"""Number of last steps whose median time is reported."""


def run(state: Any, training: Any, weights: Any, choice: str, fault: bool = False) -> dict[str, Any]:
    """Train all steps and return losses, times and the numbers of captures and replays.

    Args:
        choice: the value of `training.compile`.
        fault: let every pass read a value back, which a capture does not allow.
    """
    import torch

    from benchmarks.synthetic import restart
    from lora_trainer.train import graphs, loop

    restart(state, training.model_copy(update={"compile": choice}), weights)
    torch.cuda.reset_peak_memory_stats()
    context: AbstractContextManager[object] = nullcontext()
    if fault:
        losses = loop.sample_losses

        def reading(*args: Any) -> torch.Tensor:
            result = losses(*args)
            result.sum().item()
            return result

        context = patch.object(loop, "sample_losses", reading)
    with context, patch.object(graphs, "REPAID_AFTER", 1):  # a run has fewer steps than a job
        loop.train(state, lambda: False, [])
    seconds = [record.seconds for record in state.records]
    return {
        "losses": [record.loss for record in state.records],
        "ms": 1000 * median(seconds[-TIMED:]),
        "slowest_ms": 1000 * max(seconds[1:]),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        "captures": state.graphs.captures if state.graphs else 0,
        "replays": state.graphs.replays if state.graphs else 0,
    }


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    return max(abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two cases")
    parser.add_argument("--budget", type=float, default=100, help="seconds after which no case is started")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--model", type=Path, default=SDXL)
    parser.add_argument("--resolution", type=int, default=1024)
    args = parser.parse_args()
    started = time.monotonic()
    import torch

    from benchmarks.synthetic import build_state
    from lora_api.job import Training

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if not torch.cuda.is_available():
        sys.exit("no GPU is visible to PyTorch")
    print(torch.cuda.get_device_name(0), torch.__version__, flush=True)
    figures: dict[str, float] = {"loss_difference": 0.0, "eager_difference": 0.0}
    for name in QUICK if args.quick else CASES:
        if time.monotonic() - started > args.budget:
            print(json.dumps({"case": name, "error": "not started: the time is used up"}))
            continue
        base = {
            "rank": 16,
            "alpha": 16,
            "optimizer": "AdamW",
            "maxSteps": args.steps,
            "resolution": args.resolution,
        }
        training = Training.model_validate({**base, **CASES[name]})
        state = build_state(training, args.model)
        weights = state.flat.values.detach().clone()
        eager, graphed = run(state, training, weights, "Never"), run(state, training, weights, "Always")
        again = run(state, training, weights, "Never")
        row: dict[str, Any] = {
            "case": name,
            "loss_difference": difference(eager, graphed),
            "eager_difference": difference(eager, again),
            "eager": eager,
            "graphed": graphed,
        }
        if name == "rank 16":
            figures["graph_speedup"] = eager["ms"] / graphed["ms"]
            row["auto"] = auto = run(state, training, weights, "Auto")
            row["failing"] = failing = run(state, training, weights, "Always", fault=True)
            row["after_failure"] = after = run(state, training, weights, "Always")
            limit = 2 * max(row["eager_difference"], 1e-6)
            fell_back = failing["captures"] == 0 and difference(eager, failing) <= limit
            figures["fallback"] = float(
                fell_back and after["captures"] == 1 and difference(eager, after) <= limit
            )
            figures["auto"] = float(auto["captures"] == int(figures["graph_speedup"] > 1.1))
        row["took"] = round(time.monotonic() - started, 1)
        print(json.dumps(row), flush=True)
        for key in ("loss_difference", "eager_difference"):
            figures[key] = max(figures[key], row[key])
        del state, weights
        torch.cuda.empty_cache()
    print("RESULT " + " ".join(f"{name}={value:.3g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
