"""Compare the trainer with a loop that follows diffusers' DreamBooth-LoRA script, on an SDXL model of 50 M parameters.

Usage: python -m benchmarks.bench_trainer [--rounds 5] [--steps 6] [--quick]

The loop is `tests/support/reference_trainer.py`. It encodes its image and its caption in every step. Every run is a separate
process with one thread. Compared runs alternate, and medians are reported. Times are processor time, which depends
little on the load of the machine. The model and its memory measurements are cached, as on a node that has run a job
before. The last line of the output is machine-readable:

speedup_equal   steps per second relative to the loop, both without gradient checkpointing
speedup_auto    with gradientCheckpointing Auto, relative to the loop with checkpointing, as in diffusers' script
speedup_cached  relative to the loop with cached latents, as in diffusers' advanced script
memory_ratio    peak memory relative to the loop's, both without gradient checkpointing
overhead_share  share of a step's time outside of the forward and backward pass of the UNet and the loss
start_ratio     time from the process's start to the end of its first step, relative to the loop's
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
CAPTIONS = [f"a photo of CUS statue, view {index}" for index in range(5)]
EQUAL = {"no-checkpointing"}
"""Savings of the loop with which it does the same work as the trainer."""
SAVINGS = [
    "cached latents",
    "cached texts",
    "no-checkpointing",
    "fused layers",
    "memory-efficient layers",
    "fused AdamW",
]


def settings(resolution: int, steps: int) -> dict[str, Any]:
    """Return the fields of `training` for all runs."""
    return {
        "resolution": resolution,
        "rank": 4,
        "maxSteps": steps,
        "optimizer": "AdamW",
        "mixedPrecision": "fp32",
        "checkpoint": {"everySteps": 1000000},
    }


# Child processes -----------------------------------------------------------------------------------------------


class Stopwatch:
    """A recorder of the end of every step. After the last one it prints the measurements and ends the process."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._ends: list[float] = []
        self.unet_seconds = 0.0

    def step(self, loss: float, losses: list[float]) -> None:
        self._ends.append(time.process_time())
        losses.append(loss)
        if len(self._ends) == 1:
            self.unet_seconds = 0.0
        if len(self._ends) == self._steps:
            whole = self._ends[-1] - self._ends[0]
            each = [b - a for a, b in zip(self._ends, self._ends[1:], strict=False)]
            result = {
                "step": median(each),
                "first": self._ends[0],
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "overhead": 1 - self.unet_seconds / whole,
                "losses": losses,
            }
            print(json.dumps(result), flush=True)
            os._exit(0)

    def timed(self, function: Callable[..., Any], sign: int) -> Callable[..., Any]:
        """Wrap a function so that its time is added to the UNet's (sign 1) or subtracted from it (sign -1)."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.unet_seconds += sign * (time.process_time() - started)

        return wrapper


def run_loop(folder: Path, resolution: int, steps: int, savings: set[str]) -> None:
    """Run the reference loop with some of the trainer's savings."""
    # diffusers' script imports these as well, so they are part of the start time.
    import accelerate  # noqa: F401
    import torch
    from diffusers import (  # noqa: F401
        DPMSolverMultistepScheduler,
        EDMEulerScheduler,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
    )

    from lora_api.job import Training
    from tests.support.reference_trainer import Reference

    torch.set_num_threads(1)
    images = [(folder / f"{index:03d}.png").read_bytes() for index in range(len(CAPTIONS))]
    training = Training.model_validate(settings(resolution, steps))
    loop = Reference(folder / "model", list(zip(images, CAPTIONS, strict=True)), training)
    loop.unet.train()
    if "no-checkpointing" not in savings:
        loop.unet.enable_gradient_checkpointing()
    if "cached latents" in savings:
        loop.posterior = functools.cache(loop.posterior)  # type: ignore[method-assign]
        for image in images:  # before the first step, as in the script
            loop.posterior(image)
        del loop.vae
    if "cached texts" in savings:
        loop.encode = functools.cache(loop.encode)  # type: ignore[method-assign]
    if "fused layers" in savings:
        from lora_trainer.train.overrides.fused import fuse

        fuse(loop.unet)
    if "memory-efficient layers" in savings:
        from lora_trainer.train.overrides.memory_efficient import make_memory_efficient

        make_memory_efficient(loop.unet)
    if "fused AdamW" in savings:
        loop.optimizer = torch.optim.AdamW(loop.parameters, lr=1e-4, weight_decay=1e-4, fused=True)
    watch, losses = Stopwatch(steps), []
    for number in range(steps):
        watch.step(loop.step(number), losses)


def run_trainer(folder: Path, resolution: int, steps: int, savings: set[str]) -> None:
    """Run the training stage with a stopwatch in its loop."""
    import torch

    from lora_api.stages import TrainConfig
    from lora_trainer.progress import Reporter
    from lora_trainer.train import loop, phases
    from lora_trainer.train.loop import Hook, TrainState, train
    from lora_trainer.train.stage import work

    torch.set_num_threads(1)
    watch, losses = Stopwatch(steps), []

    class WatchSteps:
        def after_step(self, state: TrainState) -> None:
            watch.step(state.records[-1].loss or 0.0, losses)

    def train_with_stopwatch(
        state: TrainState, asked_to_stop: Callable[[], bool], hooks: Sequence[Hook]
    ) -> bool:
        return train(state, asked_to_stop, [WatchSteps(), *hooks])

    # The UNet's time contains the forward pass, the loss and the backward pass. The preparation of batches, which
    # `accumulate` calls, is subtracted.
    loop.batches = watch.timed(loop.batches, -1)
    loop.accumulate = watch.timed(loop.accumulate, 1)
    phases.train = train_with_stopwatch  # type: ignore[attr-defined]
    config = json.loads((folder / "stage.json").read_text())
    choice = "Never" if "no-checkpointing" in savings else "Auto" if "auto" in savings else "Always"
    config["spec"]["training"] = {**settings(resolution, steps), "gradientCheckpointing": choice}
    config["workDir"] = str(folder / f"work-{os.getpid()}")  # only the model is cached
    work(TrainConfig.model_validate(config), Reporter("127.0.0.1", 0))


def prepare(folder: Path) -> None:
    """Write a model and five images."""
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
    from PIL import Image

    from lora_trainer.train.model import tiny
    from tests.conftest import draw_photograph

    wide = {"block_out_channels": (64, 128, 256), "attention_head_dim": (2, 4, 8), "norm_num_groups": 32}
    tiny.TEXT_WIDTH = 128
    tiny.write_tiny_sdxl(folder / "model")
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder / "model")
    pipeline.unet = UNet2DConditionModel.from_config(
        pipeline.unet.config,
        **wide,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 4),
    )
    pipeline.vae = AutoencoderKL.from_config(
        pipeline.vae.config, block_out_channels=(32, 64, 96, 96), layers_per_block=2, norm_num_groups=16
    )
    pipeline.save_pretrained(folder / "model")
    count = sum(p.numel() for p in pipeline.unet.parameters())
    print(f"UNet of {count / 1e6:.1f} M parameters")
    for index in range(len(CAPTIONS)):
        image = Image.open(draw_photograph(folder / f"{index}.jpg", index))
        out = io.BytesIO()
        image.save(out, "png")
        (folder / f"{index:03d}.png").write_bytes(out.getvalue())


# Parent process -------------------------------------------------------------------------------------------------


def run_child(*arguments: object) -> str:
    """Run this module with `--child` in a process of its own and return its output."""
    from lora_operator.manifests import ALLOCATOR

    command = [sys.executable, "-m", "benchmarks.bench_trainer", "--child", *map(str, arguments)]
    environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def run(kind: str, folder: Path, resolution: int, steps: int, savings: set[str]) -> dict[str, Any]:
    out = run_child(kind, folder, resolution, steps, "+".join(sorted(savings)))
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


Variant = tuple[str, set[str]]
"""The program, `loop` or `trainer`, and its savings."""


def compare(
    variants: dict[str, Variant], folder: Path, resolution: int, steps: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Run the variants alternately and return the medians of each. Exits if their losses differ."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, (kind, savings) in variants.items():
            runs[name].append(run(kind, folder, resolution, steps, savings))
    all_losses = [result["losses"] for each in runs.values() for result in each]
    difference = max(abs(a - b) for losses in all_losses for a, b in zip(losses, all_losses[0], strict=True))
    result = {
        name: {
            key: median(result[key] for result in each) for key in ("step", "first", "peak_mb", "overhead")
        }
        for name, each in runs.items()
    }
    print(f"\n{resolution} px, {rounds} rounds of {steps} steps; losses at most {difference:.1e} apart")
    print(f"{'':<44}{'s/step':>8}{'first s':>9}{'peak MB':>9}{'outside UNet':>14}")
    for name, each in result.items():
        share = f"{each['overhead']:>13.1%}" if variants[name][0] == "trainer" else ""
        print(f"{name:<44}{each['step']:>8.3f}{each['first']:>9.2f}{each['peak_mb']:>9.0f}{share}")
    if difference > 1e-4:
        sys.exit("the losses differ: the runs are not equivalent")
    return result


VARIANTS: dict[str, Variant] = {
    "loop": ("loop", EQUAL),
    "trainer": ("trainer", EQUAL),
    "loop, checkpointing": ("loop", set()),
    "trainer, Auto": ("trainer", {"auto"}),
    "loop, cached latents": ("loop", {*EQUAL, "cached latents"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--quick", action="store_true", help="256 px only, without the table of savings")
    args = parser.parse_args()
    from lora_api.job import parse_spec
    from lora_api.manifest import sha256_hex
    from lora_api.profile import StoreModel
    from lora_api.stages import StoreAccess, TrainConfig
    from lora_cli.local.seaweed import Seaweed
    from lora_trainer.store import Store
    from tests.conftest import make_spec

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print(run_child("prepare", folder).strip().splitlines()[-1])
        with Seaweed(folder / "store", ["datasets", "loras"]) as seaweed:
            (folder / "accessKey").write_text(seaweed.credentials.access_key)
            (folder / "secretKey").write_text(seaweed.credentials.secret_key)
            access = StoreAccess(
                endpoint=seaweed.endpoint,
                secure=False,
                credentials_dir=str(folder),
                input_bucket="datasets",
                output_bucket="loras",
            )
            store = Store(access)
            for path in (folder / "model").rglob("*"):
                if path.is_file():
                    store.input.put_file(f"model/{path.relative_to(folder / 'model')}", path)
            lines = [
                json.dumps({"file_name": f"{index:03d}.png", "text": text})
                for index, text in enumerate(CAPTIONS)
            ]
            captions = "\n".join(lines).encode()
            config = TrainConfig(
                namespace="bench",
                name="bench",
                uid="bench",
                spec=parse_spec(
                    make_spec(resources={"train": {"gpus": 0}}, training={"mixedPrecision": "fp32"})
                ),
                base_model=StoreModel(source="store", key="model/"),
                store=access,
                work_dir="",
                termination_log=str(folder / "termination-log"),
                progress_host="127.0.0.1",
                progress_port=0,
                attempt=1,
                captions_sha256=sha256_hex(captions),
                input_hash="sha256:" + "0" * 64,
                cache_dir=str(folder / "cache"),
            )
            (folder / "stage.json").write_text(json.dumps(config.to_wire()))
            store.output.put(config.keys.captions, captions)
            for index in range(len(CAPTIONS)):
                store.output.put_file(config.keys.image(index), folder / f"{index:03d}.png")
            measure(folder, args.rounds, args.steps, args.quick)


def measure(folder: Path, rounds: int, steps: int, quick: bool) -> None:
    """Run all comparisons and print the figures."""
    compare({name: VARIANTS[name] for name in ("trainer",)}, folder, 128, 2, 1)  # fill the model cache
    if not quick:
        compare(VARIANTS, folder, 128, steps, max(1, rounds // 2))
    result = compare(VARIANTS, folder, 256, steps, rounds)
    if not quick:
        alone: dict[str, Variant] = {"loop, checkpointing": ("loop", set())}
        alone |= {f"  and {saving} alone": ("loop", {saving}) for saving in SAVINGS}
        alone["  and all of them"] = ("loop", set(SAVINGS))
        compare(alone, folder, 256, steps, max(1, rounds // 2))
    loop, trainer = result["loop"], result["trainer"]
    auto = result["trainer, Auto"]
    figures = {
        "speedup_equal": loop["step"] / trainer["step"],
        "speedup_auto": result["loop, checkpointing"]["step"] / auto["step"],
        "speedup_cached": result["loop, cached latents"]["step"] / trainer["step"],
        "memory_ratio": trainer["peak_mb"] / loop["peak_mb"],
        "overhead_share": trainer["overhead"],
        "start_ratio": auto["first"] / result["loop, checkpointing"]["first"],
    }
    print("\nRESULT " + " ".join(f"{name}={value:.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        kind, folder, *rest = sys.argv[2:]
        if kind == "prepare":
            prepare(Path(folder))
        else:
            resolution, steps, savings = rest
            runner = {"loop": run_loop, "trainer": run_trainer}[kind]
            chosen = set(savings.split("+")) - {""}
            runner(Path(folder), int(resolution), int(steps), chosen)
    else:
        main()
