"""The trials of `bench_quality`: what each row of its table trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.trials import SETTINGS, WORLD
from tools.shapes import concepts, styles
from tools.shapes.concepts import Captions, Scene
from tools.shapes.drawing import Style

PRIOR = {"priorPreservation": {"enabled": True, "numClassImages": 12, "guidanceScale": "3"}}
RECIPE = {"recipe": "Auto"}
OPTIONS: dict[str, dict[str, Any]] = {
    "feed-forward": {"adapter": {"targets": "AttentionAndFeedForward"}},
    "full": {"adapter": {"targets": "Full"}},
    "feed-forward, prior": {"adapter": {"targets": "AttentionAndFeedForward"}, **PRIOR},
    "rank dropout": {"adapter": {"rankDropout": "0.1"}},
    "LoRA+ 4": {"loraPlusRatio": "4"},
    "Huber": {"loss": {"type": "Huber"}},
    "debiased": {"snrGamma": "5.0", "loss": {"weighting": "Debiased"}},
    "logit-normal": {"timesteps": {"distribution": "LogitNormal", "mean": "0.5"}},
    "crop jitter": {"augmentation": {"cropJitter": "0.1"}},
    "CAME": {"optimizer": "CAME"},
    "token embeddings": {"tokenEmbeddings": {"train": True}, "textEncoder": {"train": False}},
    "schedule-free Prodigy": {
        "optimizer": "ProdigyScheduleFree",
        "learningRate": "1",
        "lrScheduler": "constant",
        "textEncoder": {"train": True, "learningRate": "1"},
    },
}
"""Settings of DreamBoothLoRA that are compared with its defaults. A setting may only become a default if it is better
here."""
BASE = "base"
"""The row of the base model without an adapter."""
EXTRACT = "DreamBoothExtract, recipe Auto"
"""The row of DreamBoothExtract. `WORLD` sets its learning rates, which are those of a small model."""
FULL = "DreamBoothExtract, full"
"""The row of the fine-tuned model before the extraction."""
LORA, PRIOR_LORA = "DreamBoothLoRA", "DreamBoothLoRA, prior"
"""The rows of DreamBoothLoRA, without and with prior preservation."""
SEEDS = (0, 1, 2)
"""Seeds of the rows of recipes; a quick run has the first."""
DEFAULTS, AUTO = "defaults of a job", "recipe Auto"
"""Rows that compare the defaults with the recipe. They share what the small world needs: `WORLD`."""
IMAGES = {5: "recipe Auto, five images", 10: "recipe Auto, ten images"}
"""Rows by the number of images."""
BEST, LAST = "published: BestScore", "published: Last"
"""Rows that compare the step of the best score with the last one, in the same trainings."""
VARIED = ", varied images"
"""Suffix of the rows of the same trainings on images with different grounds and places, with the first seed."""
TOO_LONG: dict[str, Any] = {
    "maxSteps": 2 * SETTINGS["maxSteps"],
    "lrScheduler": "constant",
    "validation": {"everySteps": 50, "samples": 1, "publish": "BestScore"},
}
"""Settings of trainings with twice the quickstart's steps. The rate is constant, because the last steps of a falling one
change little."""
QUICK_CONCEPTS = 2
"""Number of concepts of a quick run, and of the trials with other captions."""


@dataclass(frozen=True)
class Trial:
    """A concept or a style to train and to score."""

    row: str
    """Row of the table."""
    concept: int
    """Index in CONCEPTS."""
    captions: Captions | None = None
    """Kind of captions to train with; None: score the base model."""
    settings: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=lambda: SETTINGS)
    """Settings that `settings` change."""
    scenes: Sequence[Scene] = field(default_factory=lambda: concepts.TRAINING_SCENES)
    """Scenes of the training images of a concept."""
    style: Style | None = None
    """Style to train in place of the concept."""
    seed: int = 0

    @property
    def publishes_best_score(self) -> bool:
        return self.settings.get("validation", {}).get("publish") == "BestScore"


METHODS = [LORA, PRIOR_LORA, "LoRA", EXTRACT]
"""The rows that compare methods."""


def method_trials(concept_count: int) -> list[Trial]:
    """List the trials of the base model and of the rows that compare methods."""
    extract = {
        "method": "DreamBoothExtract",
        **RECIPE,
        "textEncoder": {"train": True, "learningRate": "2.5e-4"},
    }
    trials: list[Trial] = [Trial(BASE, index) for index in range(concept_count)]
    for index in range(concept_count):
        trials += [
            Trial(LORA, index, Captions.GOOD),
            Trial(PRIOR_LORA, index, Captions.GOOD, PRIOR),
            Trial("LoRA", index, Captions.GOOD, {"method": "LoRA"}),
            Trial(EXTRACT, index, Captions.GOOD, extract, WORLD),
        ]
    return trials


def caption_trials() -> list[Trial]:
    """List the trials of DreamBoothLoRA with other kinds of captions than good ones."""
    return [
        Trial(f"captions: {kind}", index, kind)
        for kind in Captions
        if kind != Captions.GOOD
        for index in range(QUICK_CONCEPTS)
    ]


def option_trials(rows: list[str]) -> list[Trial]:
    """List the trials of rows of OPTIONS; of all where `rows` is empty."""
    return [
        Trial(f"option: {row}", index, Captions.GOOD, OPTIONS[row])
        for row in rows or OPTIONS
        for index in range(QUICK_CONCEPTS)
    ]


def recipe_trials(concept_count: int, seeds: tuple[int, ...]) -> list[Trial]:
    """List the trials of the rows that compare recipes, styles, numbers of images, and rules of publication."""
    compared: list[tuple[str, dict[str, Any]]] = [(DEFAULTS, {}), (AUTO, RECIPE)]
    few = min(concept_count, QUICK_CONCEPTS)
    trials: list[Trial] = []
    for seed in seeds:
        trials += [
            Trial(row, index, Captions.GOOD, settings, WORLD, seed=seed)
            for row, settings in compared
            for index in range(concept_count)
        ]
        trials += [
            Trial(
                style_row(row, style),
                0,
                Captions.GOOD,
                settings,
                WORLD,
                style=style,
                seed=seed,
            )
            for row, settings in compared
            for style in styles.STYLES
        ]
        trials += [
            Trial(row, index, Captions.GOOD, RECIPE, WORLD, concepts.SCENES[:images], seed=seed)
            for images, row in IMAGES.items()
            for index in range(few)
        ]
        # Training for too long overfits to what all images show and no caption names.
        trials += [
            Trial(BEST, index, Captions.TEMPLATE, TOO_LONG, scenes=concepts.UNIFORM_SCENES, seed=seed)
            for index in range(few)
        ]
    trials += [
        Trial(BEST + VARIED, index, Captions.TEMPLATE, TOO_LONG, seed=seeds[0]) for index in range(few)
    ]
    return trials


def style_row(row: str, style: Style) -> str:
    """Return the name of the row of a style."""
    return f"{row}, {style}"
