"""Values for every setting, and the runs that cover all pairs of them.

The fields come from the model. A new field that is in none of the tables here fails a test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import combinations, product
from typing import Any, Literal, get_args, get_origin

from allpairspy import AllPairs

from lora_api import rules
from lora_api.job import JobSpec
from lora_api.rules import RULES, Rule

from .rule_values import DEFAULTS, Row, fields_of, holds

__all__ = ["Row"]


@dataclass(frozen=True)
class Machine:
    """A device to train on."""

    base: Row
    """Settings of every run that does not change them: small and quick."""
    absent: Mapping[str, Sequence[Any]]
    """Values that the machine refuses or has no library for."""


STEPS = 3
_SMALL: Row = {
    "training.resolution": 64,
    "training.rank": 4,
    "training.alpha": 8,
    "training.maxSteps": STEPS,
    "training.optimizer": "AdamW",
    "training.preview.numInferenceSteps": 1,
}
CPU = Machine(
    {**_SMALL, "training.mixedPrecision": "fp32", "resources.train.gpus": 0},
    {"training.mixedPrecision": ["fp16"]},
)
SIMULATED_GPU = Machine(
    {**_SMALL, "resources.train.gpus": 1},
    # The scoring models have a test of their own, on the CPU.
    {
        "training.validation.publish": ["BestScore"],
        "training.validation.scores": [True],
    },
)
TOGGLES: dict[str, list[Any]] = {
    "training.lrWarmupSteps": [0, 1],
    "training.gradientAccumulationSteps": [1, 2],
    "training.captionDropout": ["0", "0.5"],
    "training.emaDecay": ["0", "0.5"],
    "training.validation.everySteps": [0, 1],
    "training.extraction.factorSteps": [0, 1],
    "training.preview.everySteps": [0, 2],
}
"""Numbers that switch something on, beside the enums and booleans."""


def complete(base: Row, row: Row) -> Row:
    """Add to a run the settings of the machine, and what makes it quick, or valid, where a field is on."""
    filled: Row = {**base, **row}
    more: Row = {}
    if filled.get("training.priorPreservation.enabled"):
        more["training.priorPreservation.numClassImages"] = 1
    if filled.get("training.validation.everySteps"):
        more["training.validation.samples"] = 2
    if filled.get("training.lrScheduler") == "cosine_with_restarts":
        # Two cycles of two steps, after a step of warm-up.
        more |= {"training.lrSchedulerCycles": 2, "training.maxSteps": 5}
    if filled.get("training.optimizer") in ("Prodigy", "ProdigyScheduleFree"):
        more |= {
            "training.learningRate": "1",
            "training.textEncoder.learningRate": "1",
        }  # their defaults with these
    if filled.get("training.optimizer") == "Prodigy":
        more["training.tokenEmbeddings.learningRate"] = "1"
    return {**base, **more, **row}


Others = dict[str, tuple[Any, Row]]
OTHERS: Others = {
    "training.resolution": (32, {}),
    "training.rank": (2, {}),
    "training.alpha": (4, {}),
    "training.adapter.convolutionRank": (2, {"training.adapter.targets": "Full"}),
    "training.adapter.blocks": ([{"block": "mid_block", "rank": 2}], {}),
    "training.adapter.rankDropout": ("0.5", {}),
    "training.adapter.factor": (4, {"training.adapter.type": "LoKr", "output.formats": ["kohya"]}),
    "training.maxSteps": (2, {}),
    "training.batchSize": (2, {}),
    "training.learningRate": ("1e-2", {}),
    "training.loraPlusRatio": ("4", {}),
    "training.lrSchedulerCycles": (
        3,
        {"training.lrScheduler": "cosine_with_restarts", "training.maxSteps": 6},
    ),
    "training.lrSchedulerPower": ("1", {"training.lrScheduler": "polynomial"}),
    "training.lrSchedulerEndRatio": ("0.5", {"training.lrScheduler": "linear"}),
    # It counts where there is little noise.
    "training.snrGamma": ("0", {"training.timesteps.max": "0.2"}),
    "training.loss.huberC": ("0.5", {"training.loss.type": "Huber"}),
    "training.timesteps.mean": ("2", {"training.timesteps.distribution": "LogitNormal"}),
    "training.timesteps.std": ("3", {"training.timesteps.distribution": "LogitNormal"}),
    "training.timesteps.min": ("0.6", {}),
    "training.timesteps.max": ("0.4", {}),
    "training.noiseOffset": ("0.5", {}),
    "training.extraction.layerEnergy": ("0.3", {"training.method": "DreamBoothExtract"}),
    "training.extraction.rankEnergy": ("0.3", {"training.method": "DreamBoothExtract"}),
    "training.textEncoder.learningRate": ("1e-2", {"training.textEncoder.train": True}),
    "training.tokenEmbeddings.tokens": (3, {"training.tokenEmbeddings.train": True}),
    "training.tokenEmbeddings.learningRate": ("1e-2", {"training.tokenEmbeddings.train": True}),
    "training.tokenEmbeddings.initializer": ("statue", {"training.tokenEmbeddings.train": True}),
    "training.tokenEmbeddings.stopAfter": ("1", {"training.tokenEmbeddings.train": True}),
    "training.priorPreservation.numClassImages": (2, {"training.priorPreservation.enabled": True}),
    "training.priorPreservation.weight": ("3", {"training.priorPreservation.enabled": True}),
    "training.priorPreservation.classPrompt": ("a rock", {"training.priorPreservation.enabled": True}),
    "training.priorPreservation.guidanceScale": ("1", {"training.priorPreservation.enabled": True}),
    "training.augmentation.cropJitter": ("0.3", {}),
    # The first six samples take the same of two variants as of four.
    "training.augmentation.cropVariants": (
        2,
        {"training.augmentation.cropJitter": "0.3", "training.maxSteps": 8},
    ),
    "training.augmentation.extraResolutions": ([32], {}),
    "training.seed": (1, {}),
    "training.checkpoint.everySteps": (1, {}),
    "training.checkpoint.keepLast": (1, {"training.checkpoint.everySteps": 1}),
    "training.validation.heldOutImages": (2, {"training.validation.everySteps": 1}),
    "training.validation.samples": (3, {"training.validation.everySteps": 1}),
    "training.variants": ([{"name": "other", "seed": 1}], {"training.validation.everySteps": 1}),
    # Nothing is learnt, so that no measurement is better than the first one.
    "training.validation.patience": (
        1,
        {"training.validation.everySteps": 1, "training.learningRate": "1e-12"},
    ),
    "training.preview.prompts": (["a rock"], {}),
    "training.preview.numInferenceSteps": (2, {}),
    "training.preview.guidanceScale": ("9", {"training.preview.numInferenceSteps": 2}),
}
"""For each other field, a value that is not its default, and the settings under which it counts."""
COMPANIONS: dict[str, Row] = {
    "training.adapter.type": {"output.formats": ["kohya"]},
    "training.extraction.convolutions": {"training.method": "DreamBoothExtract"},
    "training.extraction.factorSteps": {"training.method": "DreamBoothExtract"},
    "training.loss.huberSchedule": {"training.loss.type": "Huber"},
    "training.validation.publish": {"training.validation.everySteps": 1, "training.learningRate": "10"},
    "training.validation.scores": {"training.validation.everySteps": 1},
    # After two steps, some curves cross.
    "training.lrScheduler": {"training.lrWarmupSteps": 1, "training.maxSteps": 6},
}
"""Settings under which an enum, a boolean or a toggle counts."""
ELSEWHERE = {
    "training.compile": "needs a GPU, or its simulation: test_on_cuda",
    "training.masking.outsideWeight": "counts for images with masks: test_augmentation",
    "training.recipe": "applied before the stage starts: test_recipes",
    "training.from.key": "needs an adapter in the store: test_initial_adapter",
    "training.from.sha256": "needs an adapter in the store: test_initial_adapter",
    "output.reuse": "read by the operator: test_decide",
}
"""Fields whose effect no training on plain images shows, and the test that does."""
SCORED = ("training.validation.scores", "training.validation.publish")
"""Fields whose runs need the profile's scoring models."""


def is_scored(row: Row) -> bool:
    """Whether a run needs the profile's scoring models."""
    return bool(row.get(SCORED[0])) or row.get(SCORED[1]) == "BestScore"


def values_of(path: str) -> list[Any] | None:
    """List the values of an enum, a boolean or a toggle; None for other fields."""
    if path in TOGGLES:
        return TOGGLES[path]
    if path == "output.formats":
        return [["diffusers"], ["kohya"], ["diffusers", "kohya"]]
    annotation = rules.field_at(JobSpec, path).annotation
    if annotation is bool:
        return [False, True]
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return [str(value) for value in annotation]
    return list(get_args(annotation)) if get_origin(annotation) is Literal else None


def leaves(*sections: str) -> list[str]:
    """List the fields of sections that are not objects."""
    return [path for section in sections for path in rules.leaves(JobSpec, section)]


def fields() -> list[str]:
    """List the fields that training reads."""
    return leaves("training", "output")


@cache
def all_parameters(sections: tuple[str, ...] = ("training", "output")) -> Mapping[str, Sequence[Any]]:
    """Map the enums, booleans and toggles of sections to all of their values, those with most first."""
    known = {
        path: values_of(path)
        for section in sections
        for path in rules.leaves(JobSpec, section)
        if path not in ELSEWHERE
    }
    table = {path: values for path, values in known.items() if values is not None}
    return dict(sorted(table.items(), key=lambda item: -len(item[1])))


def parameters(machine: Machine) -> Mapping[str, Sequence[Any]]:
    """Map the fields of the covering array to the values that a machine trains with."""
    return {
        path: [value for value in values if value not in machine.absent.get(path, ())]
        for path, values in all_parameters().items()
    }


def library_rows(table: Mapping[str, Sequence[Any]]) -> Iterator[Row]:
    """Make rows in which all pairs of values occur, whether the rules accept them or not."""
    for row in AllPairs([list(values) for values in table.values()]):
        yield dict(zip(table, row, strict=True))


def repaired(row: Row, machine: Machine) -> Row:
    """Set fields back to their plain values, the last first, until the rules accept the row."""
    row = dict(row)
    plain = {path: machine.base.get(path, DEFAULTS[path]) for path in row}
    while broken := _broken(row, machine):
        read = set(fields_of(broken))
        path = next(path for path in reversed(row) if path in read and row[path] != plain[path])
        row[path] = plain[path]
    return row


def missing_pairs(rows: Sequence[Row], machine: Machine) -> list[Row]:
    """List the pairs of values that the rules allow and no run has."""
    table = parameters(machine)
    pairs = []
    for a, b in combinations(table, 2):
        seen = {(str(row[a]), str(row[b])) for row in rows}
        pairs += [
            {a: x, b: y}
            for x, y in product(table[a], table[b])
            if (str(x), str(y)) not in seen and _may_go_together({a: x, b: y}, machine)
        ]
    return pairs


def missing_values(rows: Sequence[Row], table: Mapping[str, Sequence[Any]]) -> list[Row]:
    """List the values that no run has."""
    return [
        {path: value}
        for path, values in table.items()
        for value in values
        if value not in [row[path] for row in rows]
    ]


def all_rows(machine: Machine) -> list[Row]:
    """Make runs in which every pair of values that the rules allow occurs.

    The library's rows are repaired where a rule refuses them (its own filter searches without end with so many rules).
    Pairs that are lost are put together again, as many in a row as go together.
    """
    table = parameters(machine)
    plain = {path: machine.base.get(path, DEFAULTS[path]) for path in table}
    rows = [repaired(row, machine) for row in library_rows(table)]
    missing = missing_pairs(rows, machine)
    while missing:
        row: Row = {}
        left = []
        for pair in missing:
            more = {**_companions(pair), **pair}
            fits = all(row.get(path, value) == value for path, value in more.items())
            if fits and is_valid({**plain, **row, **more}, machine):
                row |= more
            else:
                left.append(pair)
        assert row, missing
        rows.append({**plain, **row})
        missing = left
    return _without_redundant(rows)


def _without_redundant(rows: Sequence[Row]) -> list[Row]:
    """Choose rows that have all pairs of values together: each time the one with most new pairs."""
    left = [(row, _pairs_of(row)) for row in rows]
    seen: set[tuple[str, str]] = set()
    chosen = []
    while left:
        best = max(left, key=lambda item: len(item[1] - seen))
        if not best[1] - seen:
            break
        left.remove(best)
        seen |= best[1]
        chosen.append(best[0])
    return chosen


def _pairs_of(row: Row) -> set[tuple[str, str]]:
    return set(combinations([f"{path}={value}" for path, value in row.items()], 2))


def some_rows(machine: Machine, count: int) -> list[Row]:
    """Choose runs of `all_rows`: first those with most values that no other run has yet, then any up to a number."""
    left, chosen = all_rows(machine), list[Row]()
    while missing := missing_values(chosen, parameters(machine)):
        best = max(left, key=lambda row: sum(pair.items() <= row.items() for pair in missing))
        left.remove(best)
        chosen.append(best)
    return [*chosen, *left[: max(0, count - len(chosen))]]


def _companions(pair: Row) -> Row:
    """Return the settings under which the values of a pair count, of those that the covering array has."""
    chosen: Row = {}
    for path in pair:
        chosen |= {k: v for k, v in COMPANIONS.get(path, {}).items() if k in all_parameters()}
    return chosen


def _may_go_together(pair: Row, machine: Machine) -> bool:
    """Whether a valid job has both: as they are, or with the companions of either."""
    return is_valid({**_companions(pair), **pair}, machine)


def is_valid(row: Row, machine: Machine) -> bool:
    """Whether the rules accept a run."""
    return _broken(row, machine) is None


def _broken(row: Row, machine: Machine) -> Rule | None:
    """Return the first rule that refuses a run; None if all accept it."""
    values = {**DEFAULTS, **complete(machine.base, row)}
    return next((rule for rule in RULES if holds(rule, values)), None)


def settings(row: Row, base: Row) -> dict[str, Any]:
    """Build the sections of a spec from a run's values."""
    nested: dict[str, Any] = {}
    for path, value in complete(base, row).items():
        place = nested
        *parents, last = path.split(".")
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value
    return nested
