"""What the trainer learns, on concepts that the small base model never saw, judged by a classifier.

Usage: python tests/bench/bench_quality.py [--quick] [--grid quality.png]

Each method trains each concept by the real training step from six pictures; so do good and bad captions. The table
has the means over the concepts; tests/bench/shapes/scores.py says what each score is. The last line is for programs:

base          of the base model's pictures of plain prompts, the share that is right
concept       concept score with the token, DreamBoothLoRA with prior preservation
concept_base  the same of the base model
prompt_ratio  prompt score with the token, over the base model's
class_ratio   class score without the token, over the base model's
extract_gap   concept score of DreamBoothExtract's own full fine-tune, less that of the adapter taken out of it
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

PRIOR = {"priorPreservation": {"enabled": True, "numClassImages": 12}}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "DreamBoothLoRA": ("template", {}),
    "DreamBoothLoRA, prior": ("template", PRIOR),
    "LoRA": ("good", {"method": "LoRA"}),
    "DreamBoothExtract": ("template", {"method": "DreamBoothExtract", "learningRate": "3e-4"}),
}
CAPTIONS = ["template", "good", "wrong class", "no token", "truncated", "shuffled"]
"""Tried with DreamBoothLoRA."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two concepts, no captions")
    parser.add_argument("--grid", type=Path, default=Path("quality.png"), help="where the pictures go")
    args = parser.parse_args()

    from bench.shapes.pipeline import FOLDER
    from lora_operator.local.seaweed import Seaweed

    if not (FOLDER / "model_index.json").exists():
        parser.error(f"{FOLDER} holds no model yet: train it with `make base-model`, which takes hours")

    with (
        tempfile.TemporaryDirectory() as folder,
        Seaweed(Path(folder) / "store", ["datasets", "loras"]) as store,
    ):
        Bench(Path(folder), store, quick=args.quick).run(args.grid)


class Bench:
    def __init__(self, folder: Path, store: Any, quick: bool) -> None:
        from diffusers import StableDiffusionXLPipeline

        from bench.shapes import concepts, judge, pipeline, trials

        self.quick = quick
        self.workbench = trials.Workbench(folder, store, pipeline.FOLDER)
        self.pipeline = StableDiffusionXLPipeline.from_pretrained(pipeline.FOLDER)
        self.judge = judge.load()
        self.concepts = concepts.CONCEPTS[:2] if quick else concepts.CONCEPTS
        self.rows: dict[str, list[Any]] = {}
        """By the table's row, the scores of each concept."""
        self.columns: dict[str, list[Any]] = {}
        """The same for pictures, prompt by prompt."""

    def run(self, grid: Path) -> None:
        from bench.shapes import pipeline
        from bench.shapes.scores import Scores

        begun = time.monotonic()
        right, _ = pipeline.measure(self.pipeline)
        for concept in self.concepts:
            self._keep("base", concept)
            for method, (captions, settings) in METHODS.items():
                self._trial(method, concept, captions, settings)
            self._report(concept.name, begun)
        for captions in [] if self.quick else CAPTIONS[1:]:
            for concept in self.concepts[:2]:
                self._trial(f"captions: {captions}", concept, captions, {})
        means = {row: Scores.mean(scores) for row, scores in self.rows.items()}
        print(f"\n{'':28}concept  prompt   class  diversity")
        for row, mean in means.items():
            print(f"{row:28}{mean.concept:7.2f} {mean.prompt:7.2f} {mean.class_:7.2f} {mean.diversity:10.2f}")
        self._draw(grid)
        base, prior = means["base"], means["DreamBoothLoRA, prior"]
        figures = {
            "base": right["all"],
            "concept": prior.concept,
            "concept_base": base.concept,
            "prompt_ratio": prior.prompt / base.prompt,
            "class_ratio": prior.class_ / base.class_,
            "extract_gap": means["DreamBoothExtract, full"].concept - means["DreamBoothExtract"].concept,
        }
        print("\nRESULT " + " ".join(f"{name}={value:.3f}" for name, value in figures.items()))

    def _trial(self, row: str, concept: Any, captions: str, settings: dict[str, Any]) -> None:
        """Train a concept, then score the adapter; with DreamBoothExtract also what it was taken from."""
        from bench.shapes import concepts

        kind = concepts.Captions(captions)
        trained = self.workbench.train(
            concept, concepts.pictures(concept), concepts.captions(concept, kind), **settings
        )
        self.pipeline.load_lora_weights(trained.adapter)
        self._keep(row, concept)
        self.pipeline.unload_lora_weights()
        if settings.get("method") == "DreamBoothExtract":
            unet, before = self.pipeline.unet, {}
            learned = {name.removeprefix("unet."): value for name, value in trained.learned.items()}
            before = {name: unet.state_dict()[name].clone() for name in learned}
            unet.load_state_dict(learned, strict=False)
            self._keep(f"{row}, full", concept)
            unet.load_state_dict(before, strict=False)

    def _keep(self, row: str, concept: Any) -> None:
        from bench.shapes.scores import score

        scores, pictures = score(self.pipeline, concept, self.judge)
        self.rows.setdefault(row, []).append(scores)
        self.columns.setdefault(row, []).append(pictures)

    def _report(self, name: str, begun: float) -> None:
        print(f"{name}, after {time.monotonic() - begun:.0f} s", flush=True)
        for row, scores in self.rows.items():
            last = scores[-1]
            print(
                f"  {row:26}{last.concept:7.2f} {last.prompt:7.2f} {last.class_:7.2f} {last.diversity:10.2f}"
            )

    def _draw(self, path: Path) -> None:
        """A line of pictures for each concept: those that taught it, then every row's first of three prompts."""
        from bench.shapes import concepts
        from lora_trainer.train.sheet import lay_out

        lines = []
        for index, concept in enumerate(self.concepts):
            shown = concepts.pictures(concept)[:3]
            cells = {f"taught {number + 1}": picture for number, picture in enumerate(shown)}
            for row, pictures in self.columns.items():
                if not row.startswith("captions"):
                    of_prompts = concepts.to_images(pictures[index][:: len(pictures[index]) // 10][[0, 3, 7]])
                    cells |= {f"{row} {number + 1}": picture for number, picture in enumerate(of_prompts)}
            lines.append((concept.name, cells))
        lay_out(lines, cell=128).save(path)


if __name__ == "__main__":
    main()
