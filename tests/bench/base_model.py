"""Train the small base model and its judge from nothing, in parts that can be interrupted, and write them down.

Usage: python tests/bench/base_model.py [--work .demo/shapes] [--score]

It takes hours (denoiser.PLANS says how far). The last line is the share of 200 random prompts that it draws right.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
# Threads that spin while they wait keep a shared machine from its work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path(".demo/shapes"), help="for checkpoints")
    parser.add_argument("--score", action="store_true", help="only score the model that is there")
    args = parser.parse_args()

    import torch

    from bench.shapes import judge, pipeline

    if not args.score:
        judge.save(judge.train(args.work))
        pipeline.build(args.work).to(torch.float16).save_pretrained(pipeline.FOLDER)
        for path in pipeline.FOLDER.rglob("*.safetensors"):
            path.chmod(0o644)  # they were written for their owner alone
    scores, _ = pipeline.measure(pipeline.load())
    line = "RESULT " + " ".join(f"{name}={score:.3f}" for name, score in scores.items())
    card = Path(pipeline.__file__).with_name("card.md").read_text()
    (pipeline.FOLDER / "README.md").write_text(f"{card}\n```\n{line}\n```\n")
    print(line)


if __name__ == "__main__":
    main()
