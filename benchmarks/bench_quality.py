"""Train concepts that the small base model was not trained on, and score the adapters with a classifier.

Usage: python -m benchmarks.bench_quality [--quick] [--grid quality.png]

Each method trains each concept from six images with the real training stage, and each style from twenty; two concepts are also trained with
good and bad captions. The table has means over the concepts; tools/shapes/scores.py defines the scores. The rows of
recipes have means over three seeds too, and the standard deviation of the seeds' means. Two trials run at a time, with
one thread each. The last line of the output is machine-readable:

base             share of correct images of the base model for plain prompts
concept          concept score with the token, for DreamBoothLoRA with prior preservation
concept_base     the same score of the base model
prompt_ratio     prompt score with the token, divided by the base model's
class_ratio      class score without the token, divided by the base model's
extract_gap      concept score of DreamBoothExtract's fine-tuned model, minus that of the adapter extracted from it
recipe_concept   concept score with recipe Auto
recipe_prompt    prompt score with recipe Auto, divided by the base model's
style            share of images in the style with recipe Auto
five_images      concept score of recipe Auto from five images, minus that from ten
best_score_gain  mean of concept, prompt and class score of the step with the best score, minus that of the last step, in
                 trainings of twice the quickstart's steps on images with one ground and one place
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from rich.progress import track
from torch import Tensor

from benchmarks.classifier_scorer import previews, scored_by_the_classifier
from benchmarks.quality_trials import (
    AUTO,
    BASE,
    BEST,
    EXTRACT,
    FULL,
    IMAGES,
    LAST,
    LORA,
    METHODS,
    PRIOR_LORA,
    QUICK_CONCEPTS,
    SEEDS,
    Trial,
    caption_trials,
    method_trials,
    option_trials,
    recipe_trials,
    style_row,
)
from benchmarks.trained_pipeline import NewTokensPipeline, replace_weights
from benchmarks.trials import Workbench
from lora_api.job import ConceptType
from lora_cli.local.seaweed import Seaweed
from lora_trainer.train.model.adapter import ADAPTER
from lora_trainer.train.sampling.contact_sheet import contact_sheet
from tools.shapes import classifier, concepts, pipeline, styles
from tools.shapes.concepts import CONCEPTS, Captions
from tools.shapes.drawing import Style
from tools.shapes.scores import Scores, score

WORKERS = 2
"""Number of worker processes."""
Result = tuple[str, Scores, list[Image.Image]]
"""A row of the table, with the scores and images of a concept."""


class TrialRunner:
    """The part of a worker process that trains, generates and scores."""

    def __init__(self, workbench: Workbench) -> None:
        torch.set_num_threads(1)
        self._workbench = workbench
        self._pipeline = pipeline.load()
        self._classifier = classifier.load()

    def run(self, trial: Trial) -> list[Result]:
        """Train and score a concept."""
        if trial.style is not None:
            return [self._run_style(trial, trial.style)]
        concept = CONCEPTS[trial.concept]
        if trial.captions is None:
            return [self._score(trial.row, concept, self._pipeline)]
        with scored_by_the_classifier(concept):
            config = self._workbench.prepare(
                concept.class_name,
                concepts.images(concept, trial.scenes),
                concepts.captions(concept, trial.captions, trial.scenes),
                base=trial.base,
                seed=trial.seed,
                **trial.settings,
                **(previews(concept) if trial.publishes_best_score else {}),
            )
            trained = self._workbench.train(config)
        scored = NewTokensPipeline.open(trained.embeddings) if trained.embeddings else self._pipeline
        scored.load_lora_weights(trained.adapter, adapter_name=ADAPTER)
        outcome = [self._score(trial.row, concept, scored)]
        if trial.publishes_best_score:
            replace_weights(scored, trained.learned)
            outcome.append(self._score(trial.row.replace(BEST, LAST), concept, scored))
        if trial.settings.get("method") == "DreamBoothExtract":
            outcome.append(self._score_fine_tuned(concept, trained.learned))
        scored.unload_lora_weights()
        return outcome

    def _score_fine_tuned(self, concept: concepts.Concept, learned: dict[str, Tensor]) -> Result:
        """Score the fine-tuned UNet with the text encoders' adapters of the same step, before the extraction.

        The pipeline has the published adapter loaded, and its UNet is without it afterwards.
        """
        unet = self._pipeline.unet
        unet.unload_lora()
        before = {name: value.clone() for name, value in unet.state_dict().items()}
        replace_weights(self._pipeline, learned)
        outcome = self._score(FULL, concept, self._pipeline)
        unet.load_state_dict(before)
        return outcome

    def _run_style(self, trial: Trial, style: Style) -> Result:
        """Train and score a style. Its share of images in the style is the score `concept`; diversity is not measured."""
        config = self._workbench.prepare(
            styles.CONCEPT.class_name,
            styles.images(style),
            styles.captions(),
            base=trial.base,
            kind=ConceptType.STYLE,
            seed=trial.seed,
            **trial.settings,
        )
        trained = self._workbench.train(config)
        self._pipeline.load_lora_weights(trained.adapter)
        judged, images = styles.score(self._pipeline, style)
        self._pipeline.unload_lora_weights()
        scores = Scores(judged.style, judged.prompt, judged.class_, 0.0)
        return trial.row, scores, list(concepts.to_images(images))

    def _score(self, row: str, concept: concepts.Concept, scored: StableDiffusionXLPipeline) -> Result:
        scores, images = score(scored, concept, self._classifier)
        return row, scores, list(concepts.to_images(images))


@cache
def trial_runner(workbench: Workbench) -> TrialRunner:
    """Return the runner of this process."""
    return TrialRunner(workbench)


def run_trial(workbench: Workbench, trial: Trial) -> tuple[Trial, list[Result]]:
    return trial, trial_runner(workbench).run(trial)


Rows = dict[str, dict[tuple[int, int], tuple[Scores, list[Image.Image]]]]
"""Scores and images by row of the table, and by the index of the concept and the seed."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two concepts, one kind of captions")
    parser.add_argument(
        "--options",
        nargs="*",
        metavar="ROW",
        help="compare training options too: all, or these rows of OPTIONS",
    )
    parser.add_argument("--grid", type=Path, default=Path("quality.png"), help="output file of the images")
    args = parser.parse_args()

    correct, _ = pipeline.measure(pipeline.load())
    concept_count = QUICK_CONCEPTS if args.quick else len(CONCEPTS)
    trials = method_trials(concept_count)
    if not args.quick:
        trials += caption_trials()
    if args.options is not None:
        trials += option_trials(args.options)
    trials += recipe_trials(concept_count, SEEDS[:1] if args.quick else SEEDS)
    rows: Rows = defaultdict(dict)
    with (
        tempfile.TemporaryDirectory() as folder,
        Seaweed(Path(folder) / "store", ["datasets", "loras"]) as store,
        ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool,
    ):
        workbench = Workbench.open(Path(folder) / "work", store, pipeline.FOLDER)
        submitted = [pool.submit(run_trial, workbench, trial) for trial in trials]
        for done in track(as_completed(submitted), "trials", total=len(submitted)):
            trial, outcome = done.result()
            for row, scores, images in outcome:
                rows[row][trial.concept, trial.seed] = scores, images
                name = "style" if trial.style else CONCEPTS[trial.concept].name
                print(format_line(f"{name}: {row}", scores), flush=True)
    if not args.quick:
        good = rows[LORA]
        rows[f"captions: {Captions.GOOD}"] = {(index, 0): good[index, 0] for index in range(QUICK_CONCEPTS)}
    order = [BASE, *METHODS, FULL, *sorted(rows.keys() - {BASE, *METHODS, FULL})]
    means = {row: Scores.mean([scores for scores, _ in rows[row].values()]) for row in order}
    print(f"\n{'means':44}concept  prompt   class  diversity")
    for row, mean in means.items():
        print(format_line(row, mean))
        if spread := spread_over_seeds(rows[row]):
            print(format_line("  standard deviation over seeds", spread))
    save_grid({row: rows[row] for row in [BASE, *METHODS, FULL]}, args.grid)
    base, prior = means[BASE], means[PRIOR_LORA]
    figures = {
        "base": correct["all"],
        "concept": prior.concept,
        "concept_base": base.concept,
        "prompt_ratio": prior.prompt / base.prompt,
        "class_ratio": prior.class_ / base.class_,
        "extract_gap": means[FULL].concept - means[EXTRACT].concept,
        "recipe_concept": means[AUTO].concept,
        "recipe_prompt": means[AUTO].prompt / base.prompt,
        "style": fmean(means[style_row(AUTO, style)].concept for style in styles.STYLES),
        "five_images": means[IMAGES[5]].concept - means[IMAGES[10]].concept,
        "best_score_gain": overall(means[BEST]) - overall(means[LAST]),
    }
    print("\nRESULT " + " ".join(f"{name}={value:.3f}" for name, value in figures.items()))


def overall(scores: Scores) -> float:
    return fmean([scores.concept, scores.prompt, scores.class_])


def spread_over_seeds(results: dict[tuple[int, int], tuple[Scores, list[Image.Image]]]) -> Scores | None:
    """Return the standard deviation of the seeds' means; None for a row with one seed."""
    by_seed: dict[int, list[Scores]] = defaultdict(list)
    for (_, seed), (scores, _) in results.items():
        by_seed[seed].append(scores)
    if len(by_seed) < 2:
        return None
    seeds = [asdict(Scores.mean(scores)) for scores in by_seed.values()]
    return Scores(**{name: stdev(row[name] for row in seeds) for name in seeds[0]})


def format_line(name: str, scores: Scores) -> str:
    return (
        f"{name:44}{scores.concept:7.2f} {scores.prompt:7.2f} {scores.class_:7.2f} {scores.diversity:10.2f}"
    )


def save_grid(rows: Rows, path: Path) -> None:
    """Save a row of images for each concept: three training images, then two images for every row of the table."""
    lines = []
    for index in sorted(index for index, _ in rows[BASE]):
        shown = concepts.images(CONCEPTS[index])[:3]
        cells = {f"training image {number + 1}": image for number, image in enumerate(shown)}
        for row, results in rows.items():
            # The first images of the prompts with the indices 5 and 9.
            shown_images = results[index, 0][1]
            each = len(shown_images) // len(concepts.PROMPTS)
            of_prompts = shown_images[::each][5::4]
            cells |= {f"{row} {number + 1}": image for number, image in enumerate(of_prompts)}
        lines.append((CONCEPTS[index].name, cells))
    contact_sheet(lines, cell=160).save(path)


if __name__ == "__main__":
    main()
