"""`python -m lora_trainer annotate|train|launch|prefetch|plan|tiny-sdxl|demo`; each imports what it needs."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from lora_api.exits import ExitCode


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lora_trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("annotate", "clean and caption the images of a job"),
        ("train", "train and publish the adapter of a job (a worker of `launch`)"),
        ("launch", "run `train` under accelerate, on as many processes as the job has GPUs"),
    ):
        step = commands.add_parser(name, help=text)
        step.add_argument("--config", type=Path, required=True, help="the step's JSON file")
    prefetch = commands.add_parser("prefetch", help="fetch a base model into a cache, or verify it there")
    prefetch.add_argument("--config", type=Path, required=True, help="the model's JSON file")
    plan = commands.add_parser("plan", help="print the memory that a training step will need")
    plan.add_argument("--config", type=Path, required=True, help="the step's JSON file")
    plan.add_argument("--gpu", default="24GiB", help="the GPU's memory (default %(default)s)")
    tiny = commands.add_parser("tiny-sdxl", help="write a small SDXL pipeline with random weights")
    tiny.add_argument("directory", type=Path)
    tiny.add_argument("--seed", type=int, default=0)
    commands.add_parser("demo", help="serve the web page; takes Streamlit's options")
    args, rest = parser.parse_known_args(argv)
    if args.command == "demo":
        from .demo.launch import main as demo

        demo(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")

    if args.command == "annotate":
        from .annotate.step import main as annotate

        return annotate(args.config)
    if args.command == "train":
        from .train.imports import quick_imports

        with quick_imports():
            from .train.step import main as train
        return train(args.config)
    if args.command == "launch":
        from .train.launch import main as launch

        return launch(args.config)
    if args.command == "prefetch":
        from .prefetch import main as prefetch_model

        return prefetch_model(args.config)
    if args.command == "plan":
        from .train.plan import print_plan

        return print_plan(args.config, args.gpu)
    from .train.tiny import write_tiny_sdxl

    write_tiny_sdxl(args.directory, seed=args.seed)
    return 0


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """The answer to SIGTERM while libraries are imported and nothing can be lost; a step takes it over."""
    os._exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    # the first process of a container gets no signal that it leaves alone
    signal.signal(signal.SIGTERM, stop_at_once)
    sys.exit(main())
