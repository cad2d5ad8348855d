"""Train the small base model and its classifier from random weights, and write them to examples and tools.

Usage: python -m tools.base_model [--work .demo/shapes] [--score]

It takes about ten minutes with an H100, some hours without a GPU, and can be interrupted and resumed. The last line of
its output is the share of correct images for 200 random prompts.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# OpenMP threads that wait must not use the CPU, since the machine may be shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path(".demo/shapes"), help="for checkpoints")
    parser.add_argument("--score", action="store_true", help="only score the existing model")
    args = parser.parse_args()

    import torch

    from tools.shapes import classifier, pipeline

    if not args.score:
        classifier.save(classifier.train(args.work))
        pipeline.build(args.work).to(torch.float16).save_pretrained(pipeline.FOLDER)
        for path in pipeline.FOLDER.rglob("*.safetensors"):
            path.chmod(0o644)  # saved with mode 0600
    scores, _ = pipeline.measure(pipeline.load())
    line = "RESULT " + " ".join(f"{name}={score:.3f}" for name, score in scores.items())
    card = Path(pipeline.__file__).with_name("card.md").read_text()
    (pipeline.FOLDER / "README.md").write_text(f"{card}\n```\n{line}\n```\n")
    print(line)


if __name__ == "__main__":
    main()
