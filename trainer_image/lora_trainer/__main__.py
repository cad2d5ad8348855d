"""`python -m lora_trainer annotate|train|launch|prefetch|tiny-sdxl|demo`; each imports what it needs."""

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
        stage = commands.add_parser(name, help=text)
        stage.add_argument("--config", type=Path, required=True, help="the stage's JSON file")
    prefetch = commands.add_parser("prefetch", help="fetch a base model into a cache, or verify it there")
    prefetch.add_argument("--config", type=Path, required=True, help="the model's JSON file")
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
        from .annotate.stage import main as annotate

        return annotate(args.config)
    if args.command == "train":
        from .train.stage import main as train

        return train(args.config)
    if args.command == "launch":
        from .train.launch import main as launch

        return launch(args.config)
    if args.command == "prefetch":
        from .prefetch import main as prefetch_model

        return prefetch_model(args.config)
    from .train.model.tiny import write_tiny_sdxl

    write_tiny_sdxl(args.directory, seed=args.seed)
    return 0


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """Exit on SIGTERM while libraries are imported, when there is no work to save. Each stage sets its own handler."""
    os._exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    # The kernel ignores SIGTERM for the first process of a container unless it has a handler.
    signal.signal(signal.SIGTERM, stop_at_once)
    sys.exit(main())
