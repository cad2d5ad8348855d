"""What the trainer learns, on concepts that the small base model never saw, judged by a classifier.

Usage: python tests/bench/bench_quality.py [--quick] [--grid quality.png]

Each method trains each concept by the real training step from six pictures; so do good and bad captions, on two of
them. The table has the means over the concepts; tests/bench/shapes/scores.py says what each score is. Trials run two
at a time, on one thread each. The last line is for programs:

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
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from PIL import Image
from rich.progress import track

from bench.shapes import concepts, judge, pipeline
from bench.shapes.concepts import CONCEPTS, Captions
from bench.shapes.scores import Scores, score
from bench.shapes.trials import Workbench
from lora_operator.local.seaweed import Seaweed
from lora_trainer.train.sheet import lay_out

PRIOR = {"priorPreservation": {"enabled": True, "numClassImages": 12, "guidanceScale": "3"}}
EXTRACT = {
    "method": "DreamBoothExtract",
    "rank": 8,
    "alpha": 8,
    "maxSteps": 400,
    "textEncoder": {"train": False},
    "extraction": {"convolutions": True, "factorSteps": 200},
}
METHODS: dict[str, tuple[Captions, dict[str, Any]]] = {
    "DreamBoothLoRA": (Captions.GOOD, {}),
    "DreamBoothLoRA, prior": (Captions.GOOD, PRIOR),
    "LoRA": (Captions.GOOD, {"method": "LoRA"}),
    "DreamBoothExtract": (Captions.GOOD, EXTRACT),
}
BASE = "base"
FULL = "DreamBoothExtract, full"
CAPTIONS = [kind for kind in Captions if kind != Captions.GOOD]
"""Tried with DreamBoothLoRA."""
FEW = 2
"""Concepts of a quick run, and those that are taught by other captions too."""
AT_ONCE = 2


@dataclass(frozen=True)
class Trial:
    """A concept to teach and to judge."""

    row: str
    """Of the table."""
    concept: int
    captions: Captions | None = None
    """None: nothing is taught."""
    settings: dict[str, Any] = field(default_factory=dict)


Outcome = list[tuple[str, Scores, list[Image.Image]]]
"""Rows of the table, with what the concept's pictures scored there."""


class Artist:
    """Trains, draws and judges, in a process of its own."""

    def __init__(self, workbench: Workbench) -> None:
        torch.set_num_threads(1)
        self._workbench = workbench
        self._pipeline = pipeline.load()
        self._judge = judge.load()

    def work(self, trial: Trial) -> Outcome:
        concept = CONCEPTS[trial.concept]
        if trial.captions is None:
            return [self._judged(trial.row, concept)]
        trained = self._workbench.train(
            concept, concepts.pictures(concept), concepts.captions(concept, trial.captions), **trial.settings
        )
        self._pipeline.load_lora_weights(trained.adapter)
        outcome = [self._judged(trial.row, concept)]
        self._pipeline.unload_lora_weights()
        if trial.settings.get("method") == "DreamBoothExtract":
            unet = self._pipeline.unet
            learned = {name.removeprefix("unet."): value for name, value in trained.learned.items()}
            before = {name: unet.state_dict()[name].clone() for name in learned}
            unet.load_state_dict(learned, strict=False)
            outcome.append(self._judged(FULL, concept))
            unet.load_state_dict(before, strict=False)
        return outcome

    def _judged(self, row: str, concept: concepts.Concept) -> tuple[str, Scores, list[Image.Image]]:
        scores, pictures = score(self._pipeline, concept, self._judge)
        return row, scores, list(concepts.to_images(pictures))


@cache
def artist(workbench: Workbench) -> Artist:
    """This process's own."""
    return Artist(workbench)


def work(workbench: Workbench, trial: Trial) -> tuple[Trial, Outcome]:
    return trial, artist(workbench).work(trial)


Rows = dict[str, dict[int, tuple[Scores, list[Image.Image]]]]
"""By a row of the table and a concept's index: what its pictures scored, and they."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two concepts, no captions")
    parser.add_argument("--grid", type=Path, default=Path("quality.png"), help="where the pictures go")
    args = parser.parse_args()

    right, _ = pipeline.measure(pipeline.load())
    trials = [Trial(BASE, index) for index in range(FEW if args.quick else len(CONCEPTS))]
    trials += [
        Trial(row, base.concept, captions, settings)
        for base in trials
        for row, (captions, settings) in METHODS.items()
    ]
    if not args.quick:
        trials += [Trial(f"captions: {kind}", index, kind) for kind in CAPTIONS for index in range(FEW)]
    rows: Rows = defaultdict(dict)
    with (
        tempfile.TemporaryDirectory() as folder,
        Seaweed(Path(folder) / "store", ["datasets", "loras"]) as store,
        ProcessPoolExecutor(AT_ONCE, get_context("spawn")) as pool,
    ):
        workbench = Workbench.open(Path(folder) / "work", store, pipeline.FOLDER)
        asked = [pool.submit(work, workbench, trial) for trial in trials]
        for done in track(as_completed(asked), "trials", total=len(asked)):
            trial, outcome = done.result()
            for row, scores, pictures in outcome:
                rows[row][trial.concept] = scores, pictures
                print(line(f"{CONCEPTS[trial.concept].name}: {row}", scores), flush=True)
    if not args.quick:
        good = rows["DreamBoothLoRA"]
        rows[f"captions: {Captions.GOOD}"] = {index: good[index] for index in range(FEW)}
    order = [BASE, *METHODS, FULL, *sorted(rows.keys() - {BASE, *METHODS, FULL})]
    means = {row: Scores.mean([scores for scores, _ in rows[row].values()]) for row in order}
    print(f"\n{'means':44}concept  prompt   class  diversity")
    for row, mean in means.items():
        print(line(row, mean))
    draw({row: rows[row] for row in order}, args.grid)
    base, prior = means[BASE], means["DreamBoothLoRA, prior"]
    figures = {
        "base": right["all"],
        "concept": prior.concept,
        "concept_base": base.concept,
        "prompt_ratio": prior.prompt / base.prompt,
        "class_ratio": prior.class_ / base.class_,
        "extract_gap": means[FULL].concept - means["DreamBoothExtract"].concept,
    }
    print("\nRESULT " + " ".join(f"{name}={value:.3f}" for name, value in figures.items()))


def line(name: str, scores: Scores) -> str:
    return (
        f"{name:44}{scores.concept:7.2f} {scores.prompt:7.2f} {scores.class_:7.2f} {scores.diversity:10.2f}"
    )


def draw(rows: Rows, path: Path) -> None:
    """A line of pictures for each concept: three that taught it, then every row's of two prompts."""
    lines = []
    for index in sorted(rows[BASE]):
        shown = concepts.pictures(CONCEPTS[index])[:3]
        cells = {f"taught {number + 1}": picture for number, picture in enumerate(shown)}
        for row, found in rows.items():
            if not row.startswith("captions"):
                each = len(found[index][1]) // len(concepts.PROMPTS)
                of_prompts = found[index][1][::each][5::4]
                cells |= {f"{row} {number + 1}": picture for number, picture in enumerate(of_prompts)}
        lines.append((CONCEPTS[index].name, cells))
    lay_out(lines, cell=160).save(path)


if __name__ == "__main__":
    main()
