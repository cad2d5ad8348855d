"""The trainer beside a plain loop after diffusers' DreamBooth-LoRA script, on one small SDXL of 50 M parameters.

Usage: python tests/bench/bench_trainer.py [--rounds 5] [--steps 6] [--quick]

The loop is the tests' reference: it encodes its image and its caption in every step. Every run is a process of its
own on one thread; those that are compared alternate, and medians are reported. Seconds are of processor time, which
on one thread is the time it takes, whatever else the machine does. The model's files and what was measured of it
are in the trainer's cache, as on a node that has run a job before. The last line is for programs:

speedup_equal   steps per second against the loop, both without gradient checkpointing
speedup_auto    with gradientCheckpointing Auto, against the loop with checkpointing, as diffusers' script is run
speedup_cached  against the loop with cached latents, as diffusers' advanced script has them
memory_ratio    peak memory against the loop's, as in speedup_equal
overhead_share  of a step's time, what is spent outside of the UNet's and the loss's forward and backward pass
start_ratio     time from the process's start to the end of its first step, against the loop's
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
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))
CAPTIONS = [f"a photo of CUS statue, view {index}" for index in range(5)]
EQUAL = {"no-checkpointing"}
SAVINGS = ["cached latents", "cached texts", "no-checkpointing", "fused layers", "lean layers", "fused AdamW"]


def settings(resolution: int, steps: int) -> dict[str, Any]:
    return {
        "resolution": resolution,
        "rank": 4,
        "maxSteps": steps,
        "optimizer": "AdamW",
        "mixedPrecision": "fp32",
        "checkpoint": {"everySteps": 1000000},
    }


# In the children -----------------------------------------------------------------------------------------------


class Stopwatch:
    """Notes the end of every step and prints what a run was like."""

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
            found = {
                "step": median(each),
                "first": self._ends[0],
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "overhead": 1 - self.unet_seconds / whole,
                "losses": losses,
            }
            print(json.dumps(found), flush=True)
            os._exit(0)

    def timed(self, function: Callable[..., Any], sign: int) -> Callable[..., Any]:
        """Count a function's time to the UNet's, or take it off."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            begun = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.unet_seconds += sign * (time.process_time() - begun)

        return wrapper


def run_loop(folder: Path, resolution: int, steps: int, savings: set[str]) -> None:
    # What the script imports beside what the loop needs.
    import accelerate  # noqa: F401
    import torch
    from diffusers import (  # noqa: F401
        DPMSolverMultistepScheduler,
        EDMEulerScheduler,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
    )

    from integration.train.reference import Reference
    from lora_api.job import Training

    torch.set_num_threads(1)
    images = [(folder / f"{index:03d}.png").read_bytes() for index in range(len(CAPTIONS))]
    training = Training.model_validate(settings(resolution, steps))
    loop = Reference(folder / "model", list(zip(images, CAPTIONS, strict=True)), training)
    loop.unet.train()
    if "no-checkpointing" not in savings:
        loop.unet.enable_gradient_checkpointing()
    if "cached latents" in savings:
        loop.posterior = functools.cache(loop.posterior)  # type: ignore[method-assign]
        for image in images:  # all before the first step, as the script does
            loop.posterior(image)
        del loop.vae
    if "cached texts" in savings:
        loop.encode = functools.cache(loop.encode)  # type: ignore[method-assign]
    if "fused layers" in savings:
        from lora_trainer.train.fused import fuse

        fuse(loop.unet)
    if "lean layers" in savings:
        from lora_trainer.train.lean import make_lean

        make_lean(loop.unet)
    if "fused AdamW" in savings:
        loop.optimizer = torch.optim.AdamW(loop.parameters, lr=1e-4, weight_decay=1e-4, fused=True)
    watch, losses = Stopwatch(steps), []
    for number in range(steps):
        watch.step(loop.step(number), losses)


def run_trainer(folder: Path, resolution: int, steps: int, savings: set[str]) -> None:
    from lora_trainer.train.imports import quick_imports

    with quick_imports():  # as the command does
        from lora_api.steps import TrainStep
        from lora_trainer.progress import Reporter
        from lora_trainer.train import loop, session
        from lora_trainer.train.loop import Learner, train
        from lora_trainer.train.step import work
    import torch

    torch.set_num_threads(1)
    watch, losses = Stopwatch(steps), []

    def watched(learner: Learner, asked: Callable[[], bool], after: Callable[[bool], None]) -> bool:
        def after_step(stop: bool) -> None:
            watch.step(learner.records[-1].loss or 0.0, losses)
            after(stop)

        return train(learner, asked, after_step)

    # Forward and backward, with the loss and the graph's end, without the making of batches.
    loop.batches = watch.timed(loop.batches, -1)
    loop.accumulate = watch.timed(loop.accumulate, 1)
    session.train = watched  # type: ignore[attr-defined]
    config = json.loads((folder / "step.json").read_text())
    choice = "Never" if "no-checkpointing" in savings else "Auto" if "auto" in savings else "Always"
    config["spec"]["training"] = {**settings(resolution, steps), "gradientCheckpointing": choice}
    config["workDir"] = str(folder / f"work-{os.getpid()}")  # nothing cached but the model itself
    work(TrainStep.model_validate(config), Reporter("127.0.0.1", 0))


def prepare(folder: Path) -> None:
    """A model and five pictures."""
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
    from PIL import Image

    from conftest import draw_photograph
    from lora_trainer.train import tiny

    wide = {"block_out_channels": (64, 128, 256), "attention_head_dim": (2, 4, 8), "norm_num_groups": 32}
    text = 128
    tiny.TEXT_WIDTH = text
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


# In the parent -------------------------------------------------------------------------------------------------


def child(*words: object) -> str:
    command = [sys.executable, __file__, "--child", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def run(kind: str, folder: Path, resolution: int, steps: int, savings: set[str]) -> dict[str, Any]:
    out = child(kind, folder, resolution, steps, "+".join(sorted(savings)))
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


Variant = tuple[str, set[str]]


def compare(
    variants: dict[str, Variant], folder: Path, resolution: int, steps: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Run the variants in turn, so many rounds; the medians of each. All must have the same losses."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, (kind, savings) in variants.items():
            runs[name].append(run(kind, folder, resolution, steps, savings))
    all_losses = [found["losses"] for each in runs.values() for found in each]
    apart = max(abs(a - b) for losses in all_losses for a, b in zip(losses, all_losses[0], strict=True))
    result = {
        name: {key: median(found[key] for found in each) for key in ("step", "first", "peak_mb", "overhead")}
        for name, each in runs.items()
    }
    print(f"\n{resolution} px, {rounds} rounds of {steps} steps; losses at most {apart:.1e} apart")
    print(f"{'':<44}{'s/step':>8}{'first s':>9}{'peak MB':>9}{'outside UNet':>14}")
    for name, each in result.items():
        share = f"{each['overhead']:>13.1%}" if variants[name][0] == "trainer" else ""
        print(f"{name:<44}{each['step']:>8.3f}{each['first']:>9.2f}{each['peak_mb']:>9.0f}{share}")
    if apart > 1e-4:
        sys.exit("the losses differ: the runs did not do the same work")
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
    from conftest import make_spec
    from lora_api.job import parse_spec
    from lora_api.manifest import sha256_hex
    from lora_api.profile import StoreModel
    from lora_api.steps import StoreAccess, TrainStep
    from lora_operator.local.seaweed import Seaweed
    from lora_trainer.store import Store

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print(child("prepare", folder).strip().splitlines()[-1])
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
            config = TrainStep(
                namespace="bench",
                name="bench",
                uid="bench",
                spec=parse_spec(make_spec(resources={"train": {"gpus": 0}})),
                base_model=StoreModel(source="store", key="model/"),
                store=access,
                work_dir="",
                termination_log=str(folder / "termination-log"),
                progress_host="127.0.0.1",
                progress_port=0,
                attempt=1,
                captions_sha256=sha256_hex(captions),
                input_hash="sha256:bench",
                cache_dir=str(folder / "cache"),
            )
            (folder / "step.json").write_text(json.dumps(config.to_wire()))
            store.output.put(config.keys.captions, captions)
            for index in range(len(CAPTIONS)):
                store.output.put_file(config.keys.image(index), folder / f"{index:03d}.png")
            measure(folder, args.rounds, args.steps, args.quick)


def measure(folder: Path, rounds: int, steps: int, quick: bool) -> None:
    compare({name: VARIANTS[name] for name in ("trainer",)}, folder, 128, 2, 1)  # fills the model's cache
    if not quick:
        compare(VARIANTS, folder, 128, steps, max(1, rounds // 2))
    found = compare(VARIANTS, folder, 256, steps, rounds)
    if not quick:
        alone: dict[str, Variant] = {"loop, checkpointing": ("loop", set())}
        alone |= {f"  and {saving} alone": ("loop", {saving}) for saving in SAVINGS}
        alone["  and all of them"] = ("loop", set(SAVINGS))
        compare(alone, folder, 256, steps, max(1, rounds // 2))
    loop, trainer = found["loop"], found["trainer"]
    auto = found["trainer, Auto"]
    figures = {
        "speedup_equal": loop["step"] / trainer["step"],
        "speedup_auto": found["loop, checkpointing"]["step"] / auto["step"],
        "speedup_cached": found["loop, cached latents"]["step"] / trainer["step"],
        "memory_ratio": trainer["peak_mb"] / loop["peak_mb"],
        "overhead_share": trainer["overhead"],
        "start_ratio": auto["first"] / found["loop, checkpointing"]["first"],
    }
    print("\nRESULT " + " ".join(f"{name}={value:.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        kind, where, *rest = sys.argv[2:]
        if kind == "prepare":
            prepare(Path(where))
        else:
            resolution, steps, savings = rest
            runner = {"loop": run_loop, "trainer": run_trainer}[kind]
            chosen = set(savings.split("+")) - {""}
            runner(Path(where), int(resolution), int(steps), chosen)
    else:
        main()
