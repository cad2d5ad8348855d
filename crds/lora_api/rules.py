"""Rules about settings that exclude each other.

A setting that would have no effect is refused as well as one that contradicts another. One table holds all rules:
`JobSpec` applies it to every spec, in the command line, the operator and both stages, and `crd.py` writes it in CEL
for the API server. Predicates and table are one module because each predicate is written in Python and in CEL, and
must be read together with the rules that use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import cache
from typing import Any, Protocol, get_args

from pydantic import BaseModel

Constant = bool | int | str | Decimal | tuple[str, ...]

PRODIGY_RATE_PATHS = (
    "training.learningRate",
    "training.textEncoder.learningRate",
    "training.tokenEmbeddings.learningRate",
)
"""Fields whose default depends on the optimizer. CEL does not know the default, so it checks them only where they are
set."""


class Predicate(Protocol):
    """A condition on a spec, which Python evaluates and CEL expresses."""

    def holds(self, spec: BaseModel) -> bool:
        """Whether a spec with all of its defaults meets the condition."""
        ...

    def cel(self, model: type[BaseModel]) -> str:
        """Write the condition in CEL, for a spec in which fields with a default may be absent."""
        ...


@dataclass(frozen=True)
class Compare:
    """Holds when a comparison of a field with a constant, or with another field, is true."""

    field: str
    operator: str
    value: Constant | None = None
    other: str = ""
    """Path of the field to compare with, in place of `value`."""

    def holds(self, spec: BaseModel) -> bool:
        left = _plain(_value(spec, self.field))
        right = _plain(_value(spec, self.other) if self.other else self.value)
        match self.operator:
            case "==":
                return bool(left == right)
            case "!=":
                return bool(left != right)
            case "<":
                return bool(left < right)
            case "<=":
                return bool(left <= right)
            case ">":
                return bool(left > right)
            case ">=":
                return bool(left >= right)
        raise ValueError(self.operator)

    def cel(self, model: type[BaseModel]) -> str:
        if isinstance(self.value, bool):
            is_wanted = self.value == (self.operator == "==")
            return f"{'' if is_wanted else '!'}{_cel_value(model, self.field)}"
        right = _cel_value(model, self.other) if self.other else _literal(self.value)
        if self.field in PRODIGY_RATE_PATHS:
            return f"({_present(self.field)} && double(self.{self.field}) {self.operator} {right})"
        if isinstance(self.value, str):
            return f"{_cel_text(model, self.field, (self.value,))} {self.operator} {right}"
        return f"{_cel_value(model, self.field)} {self.operator} {right}"


@dataclass(frozen=True)
class In:
    """Holds when a field has one of some values."""

    field: str
    values: tuple[str, ...]

    def holds(self, spec: BaseModel) -> bool:
        return _plain(_value(spec, self.field)) in self.values

    def cel(self, model: type[BaseModel]) -> str:
        return f"{_cel_text(model, self.field, self.values)} in [{', '.join(map(repr, self.values))}]"


@dataclass(frozen=True)
class Changed:
    """Holds when a field, or any field of an object, differs from its default."""

    field: str

    def holds(self, spec: BaseModel) -> bool:
        return bool(_value(spec, self.field) != default_of(type(spec), self.field))

    def cel(self, model: type[BaseModel]) -> str:
        comparisons = []
        for path in leaves(model, self.field):
            default = default_of(model, path)
            if default is None:
                comparisons.append(f"({_present(path)})")
            elif isinstance(default, list):
                comparisons.append(f"({_present(path)} && size(self.{path}) > 0)")
            else:
                comparisons.append(Compare(path, "!=", _plain(default)).cel(model))
        return f"({' || '.join(comparisons)})" if len(comparisons) > 1 else comparisons[0]


@dataclass(frozen=True)
class Present:
    """Holds when an optional object is set."""

    field: str

    def holds(self, spec: BaseModel) -> bool:
        return _value(spec, self.field) is not None

    def cel(self, model: type[BaseModel]) -> str:
        return f"({_present(self.field)})"


@dataclass(frozen=True)
class AnyBlock:
    """Holds when any of training.adapter.blocks has a field with a value above or other than a number."""

    field: str
    operator: str
    number: int

    def holds(self, spec: BaseModel) -> bool:
        blocks = _value(spec, "training.adapter.blocks")
        values = [_value(block, self.field) for block in blocks]
        return any(
            value is not None and (value > self.number if self.operator == ">" else value != self.number)
            for value in values
        )

    def cel(self, model: type[BaseModel]) -> str:
        # Not `orValue([])`, whose length the API server cannot bound. `double()` converts both kinds of fields: ranks
        # are integers, and scales are strings.
        blocks = "training.adapter.blocks"
        condition = f"has(b.{self.field}) && double(b.{self.field}) {self.operator} {self.number}.0"
        return f"({_present(blocks)} && self.{blocks}.exists(b, {condition}))"


@dataclass(frozen=True)
class AnyItemAtLeast:
    """Holds when any number of a list is at or above a field."""

    field: str
    other: str

    def holds(self, spec: BaseModel) -> bool:
        return any(item >= _value(spec, self.other) for item in _value(spec, self.field))

    def cel(self, model: type[BaseModel]) -> str:
        condition = f"item >= {_cel_value(model, self.other)}"
        return f"({_present(self.field)} && self.{self.field}.exists(item, {condition}))"


@dataclass(frozen=True)
class Repeated:
    """Holds when a list has an item twice, or two objects with the same value of a field.

    A rule with it has no CEL: the CRD declares the list a set, or a map by that field (`unique_lists`).
    """

    field: str
    key: str = ""
    """The field of the objects to compare; empty for a list of plain values."""

    def holds(self, spec: BaseModel) -> bool:
        items = _value(spec, self.field)
        values = [_value(item, self.key) if self.key else item for item in items]
        return len(set(values)) < len(values)

    def cel(self, model: type[BaseModel]) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class AnyBlockWithoutEffect:
    """Holds when any of training.adapter.blocks has only defaults, or a learning rate for an adapter of rank 0."""

    def holds(self, spec: BaseModel) -> bool:
        blocks = _value(spec, "training.adapter.blocks")
        return any(
            _value(block, "rank") == (None if _value(block, "learningRateScale") == 1 else 0)
            for block in blocks
        )

    def cel(self, model: type[BaseModel]) -> str:
        blocks = "training.adapter.blocks"
        plain = "!has(b.learningRateScale) || double(b.learningRateScale) == 1.0"
        condition = f"({plain}) ? !has(b.rank) : (has(b.rank) && b.rank == 0)"
        return f"({_present(blocks)} && self.{blocks}.exists(b, {condition}))"


@dataclass(frozen=True)
class AnyVariantSets:
    """Holds when any of training.variants sets a field."""

    field: str

    def holds(self, spec: BaseModel) -> bool:
        return any(_value(variant, self.field) is not None for variant in _value(spec, "training.variants"))

    def cel(self, model: type[BaseModel]) -> str:
        variants = "training.variants"
        return f"({_present(variants)} && self.{variants}.exists(v, has(v.{self.field})))"


@dataclass(frozen=True)
class AnyBlockOfCommonRank:
    """Holds when any of training.adapter.blocks sets only the rank that its layers have without it, in every variant.

    It has no CEL, because it is only for advice.
    """

    def holds(self, spec: BaseModel) -> bool:
        trainings = _value(spec, "training").trainings().values()
        return any(
            _value(block, "learningRateScale") == 1
            and all(
                _value(block, "rank") == _value(training, "rank")
                # otherwise the entry takes the rank of the block's convolutions back
                and _value(training, "adapter.convolutionRank") in (0, _value(training, "rank"))
                for training in trainings
            )
            for block in _value(spec, "training.adapter.blocks")
        )

    def cel(self, model: type[BaseModel]) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class EqualVariants:
    """Holds when two of training.variants train with the same settings. It has no CEL, because it is only for advice."""

    def holds(self, spec: BaseModel) -> bool:
        trainings = [training.model_dump_json() for training in _value(spec, "training").trainings().values()]
        return len(set(trainings)) < len(trainings)

    def cel(self, model: type[BaseModel]) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class VariantsByTrainingImages:
    """Holds when one of several variants is chosen by the loss on the training images. It has no CEL, because it is only for advice."""

    def holds(self, spec: BaseModel) -> bool:
        validation = _value(spec, "training.validation")
        is_independent = _value(validation, "heldOutImages") > 0 or validation.measures_scores
        return len(_value(spec, "training.variants")) > 1 and not is_independent

    def cel(self, model: type[BaseModel]) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class Positive:
    """Holds when a sum of products of fields is above 0. In the rules of the CRD, the fields must be integers."""

    terms: tuple[tuple[int, tuple[str, ...]], ...]
    """A factor and the fields to multiply, for each summand."""

    def holds(self, spec: BaseModel) -> bool:
        total = sum(factor * math.prod(_value(spec, path) for path in paths) for factor, paths in self.terms)
        return bool(total > 0)

    def cel(self, model: type[BaseModel]) -> str:
        summands = [
            " * ".join([str(factor), *(_cel_value(model, path) for path in paths)])
            for factor, paths in self.terms
        ]
        return f"{' + '.join(summands)} > 0"


@dataclass(frozen=True)
class AnyOf:
    """Holds when at least one of the predicates holds."""

    predicates: tuple[Predicate, ...]

    def holds(self, spec: BaseModel) -> bool:
        return any(predicate.holds(spec) for predicate in self.predicates)

    def cel(self, model: type[BaseModel]) -> str:
        return f"({' || '.join(predicate.cel(model) for predicate in self.predicates)})"


@dataclass(frozen=True)
class AllOf:
    """Holds when all of the predicates hold."""

    predicates: tuple[Predicate, ...]

    def holds(self, spec: BaseModel) -> bool:
        return all(predicate.holds(spec) for predicate in self.predicates)

    def cel(self, model: type[BaseModel]) -> str:
        return f"({' && '.join(predicate.cel(model) for predicate in self.predicates)})"


@dataclass(frozen=True)
class Not:
    """Holds when a predicate does not."""

    predicate: Predicate

    def holds(self, spec: BaseModel) -> bool:
        return not self.predicate.holds(spec)

    def cel(self, model: type[BaseModel]) -> str:
        return f"!({self.predicate.cel(model)})"


@dataclass(frozen=True)
class Rule:
    """A combination of settings, given by predicates that all hold, and the message about it."""

    message: str
    """Begins with the field to change."""
    predicates: tuple[Predicate, ...]

    def applies(self, spec: BaseModel) -> bool:
        """Whether a spec has the combination."""
        return all(predicate.holds(spec) for predicate in self.predicates)

    def cel(self, model: type[BaseModel]) -> str:
        return f"!({' && '.join(predicate.cel(model) for predicate in self.predicates)})"


def is_never_compiled(spec: BaseModel) -> bool:
    """Return whether no step of a job can be a CUDA graph, so that `training.compile: Auto` means Never."""
    return Compare("resources.train.gpus", "==", 0).holds(spec) or _CHANGES_ON_CPU.holds(spec)


def violations(spec: BaseModel) -> list[str]:
    """List the messages of the rules that a spec breaks."""
    return [rule.message for rule in RULES if rule.applies(spec)]


def advice(spec: BaseModel) -> list[str]:
    """List the warnings about a valid spec."""
    return [rule.message for rule in ADVICE if rule.applies(spec)]


def cel_rules(model: type[BaseModel]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Write the table as validation rules of the CRD.

    Returns:
        the rules of the spec, and those of `training`, which read no other field. Paths within an object are shorter, and
        the CRD must stay small. No default breaks a rule, so that they need not hold where `training` is absent.
    """
    whole: list[dict[str, str]] = []
    inner: list[dict[str, str]] = []
    for rule in RULES:
        if isinstance(rule.predicates[0], Repeated):
            continue
        text = rule.cel(model)
        short = text.replace("self.?training.?", "self.?").replace("self.training.", "self.")
        paths = text.count("self.")
        is_inner = text.count("self.?training.?") + text.count("self.training.") == paths
        (inner if is_inner else whole).append({"rule": short if is_inner else text, "message": rule.message})
    return whole, inner


def unique_lists() -> dict[str, str]:
    """Map the lists without repeated items to the field by which their objects differ, empty for plain values."""
    predicates = [predicate for rule in RULES for predicate in rule.predicates]
    return {each.field: each.key for each in predicates if isinstance(each, Repeated)}


def leaves(model: type[BaseModel], path: str) -> Iterator[str]:
    """List the fields at or below a path that are not objects themselves."""
    kind = _model_of(field_at(model, path).annotation)
    if kind is None:
        yield path
        return
    for name, field in kind.model_fields.items():
        yield from leaves(model, f"{path}.{field.alias or name}")


@cache
def default_of(model: type[BaseModel], path: str) -> Any:
    """Return a field's default in the model. It is shared and must not be changed."""
    return field_at(model, path).get_default(call_default_factory=True)


def field_at(model: type[BaseModel], path: str) -> Any:
    """Find the field at a path of camelCase names."""
    field: Any = None
    kind: type[BaseModel] | None = model
    for part in path.split("."):
        assert kind is not None, path
        field = next(f for name, f in kind.model_fields.items() if part in (f.alias, name))
        kind = _model_of(field.annotation)
    return field


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model in an annotation such as `X` or `X | None`; None for a list or a plain value."""
    options = [annotation, *get_args(annotation)]
    return (
        next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if getattr(annotation, "__origin__", None) is not list
        else None
    )


def _value(spec: BaseModel, path: str) -> Any:
    """Return a field's value by its path of camelCase names."""
    value: Any = spec
    for part in path.split("."):
        model: type[BaseModel] = type(value)
        value = getattr(value, _attribute(model, part))
    return value


@cache
def _attribute(model: type[BaseModel], name: str) -> str:
    """Return the attribute of a field with a camelCase name."""
    return next(attribute for attribute, f in model.model_fields.items() if name in (f.alias, attribute))


def _plain(value: Any) -> Any:
    """Convert enums to strings and lists to tuples, so that values compare with constants of the rules."""
    if isinstance(value, StrEnum):
        return str(value)
    return tuple(value) if isinstance(value, list) else value


def _present(path: str) -> str:
    """Write in CEL that a field is set."""
    return f"self.?{path.replace('.', '.?')}.hasValue()"


def _cel_text(model: type[BaseModel], path: str, compared: tuple[str, ...]) -> str:
    """Write a text's value in CEL, to be compared with some texts. The default is only written if it is one of them."""
    if _plain(default_of(model, path)) in compared or "" in compared:
        return _cel_value(model, path)
    return f"self.?{path.replace('.', '.?')}.orValue('')"


def _cel_value(model: type[BaseModel], path: str) -> str:
    """Write a field's value in CEL, or its default where it is not set. Real numbers are strings in a spec."""
    default = default_of(model, path)
    # the default with Prodigy; only rules for Prodigy use it, because the others check that the field is set
    if path in PRODIGY_RATE_PATHS:
        default = Decimal(1)
    if isinstance(default, Decimal):
        return f"double(self.?{path.replace('.', '.?')}.orValue('{default}'))"
    return f"self.?{path.replace('.', '.?')}.orValue({_literal(_plain(default))})"


def _literal(value: Any) -> str:
    """Write a constant in CEL."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Decimal):
        return repr(float(value))
    if isinstance(value, tuple):
        return f"[{', '.join(map(repr, value))}]"
    return repr(value)


def _is(field: str, *values: str) -> Predicate:
    """Build the predicate that a field has one of these values."""
    return In(field, values) if len(values) > 1 else Compare(field, "==", values[0])


def _is_true(field: str) -> Predicate:
    """Build the predicate that a boolean field is true."""
    return Compare(field, "==", True)


_NOT_LORA = Compare("training.adapter.type", "!=", "LoRA")
_EXTRACT = _is("training.method", "DreamBoothExtract")
_TRAINS_NO_ADAPTER = AllOf(
    (
        _EXTRACT,
        Compare("training.extraction.factorSteps", "==", 0),
        Compare("training.textEncoder.train", "==", False),
    )
)
_NO_MEASUREMENT = Compare("training.validation.everySteps", "==", 0)
_PRODIGY = _is("training.optimizer", "Prodigy", "ProdigyScheduleFree")
_SCHEDULE_FREE = _is("training.optimizer", "ProdigyScheduleFree")
_NOT_PRODIGY = AllOf(
    (
        Compare("training.optimizer", "!=", "Prodigy"),
        Compare("training.optimizer", "!=", "ProdigyScheduleFree"),
    )
)
_NEW_TOKENS = _is_true("training.tokenEmbeddings.train")
_CHANGES_ON_CPU = AnyOf(
    (
        _is_true("training.textEncoder.train"),
        _NEW_TOKENS,
        Compare("training.adapter.rankDropout", ">", Decimal(0)),
    )
)

RULES: tuple[Rule, ...] = (
    Rule(
        "dataset.minImages must not be above dataset.maxImages",
        (Compare("dataset.minImages", ">", other="dataset.maxImages"),),
    ),
    # Methods
    Rule(
        "training.extraction is for method DreamBoothExtract: the other methods extract nothing",
        (Compare("training.method", "!=", "DreamBoothExtract"), Changed("training.extraction")),
    ),
    Rule(
        "training.extraction.factorSteps must be below maxSteps: the model is fine-tuned before",
        (Compare("training.extraction.factorSteps", ">=", other="training.maxSteps"),),
    ),
    Rule(
        "training.extraction.factorSteps must leave more than one step of fine-tuning with lrWarmupSteps, which begins at "
        "a learning rate of 0",
        (
            Compare("training.extraction.factorSteps", ">", 0),
            Compare("training.lrWarmupSteps", ">", 0),
            Positive(((1, ("training.extraction.factorSteps",)), (2, ()), (-1, ("training.maxSteps",)))),
        ),
    ),
    Rule(
        "training.quantizeBase is not supported with method DreamBoothExtract, which fine-tunes the base model",
        (_EXTRACT, Compare("training.quantizeBase", "!=", "None")),
    ),
    Rule(
        "training.adapter is not supported with method DreamBoothExtract, which extracts plain LoRA",
        (_EXTRACT, Changed("training.adapter")),
    ),
    Rule(
        "training.priorPreservation.enabled is not supported with method LoRA, which has no class",
        (_is("training.method", "LoRA"), _is_true("training.priorPreservation.enabled")),
    ),
    Rule(
        "training.priorPreservation: numClassImages, weight, classPrompt and guidanceScale need enabled: true",
        (
            Compare("training.priorPreservation.enabled", "==", False),
            Changed("training.priorPreservation"),
        ),
    ),
    Rule(
        "training.priorPreservation.weight must be above 0 with enabled: true: the class images would have no effect",
        (
            _is_true("training.priorPreservation.enabled"),
            Compare("training.priorPreservation.weight", "==", Decimal(0)),
        ),
    ),
    Rule(
        "training.from is for plain LoRA and DoRA, and is not supported with method DreamBoothExtract",
        (Present("training.from"), AnyOf((_EXTRACT, _NOT_LORA))),
    ),
    # Token embeddings
    Rule(
        "training.tokenEmbeddings.train is not supported with method DreamBoothExtract",
        (_EXTRACT, _NEW_TOKENS),
    ),
    Rule(
        "training.tokenEmbeddings.train is not supported with textEncoder.train: train either the embeddings or the text "
        "encoders",
        (_NEW_TOKENS, _is_true("training.textEncoder.train")),
    ),
    Rule(
        "training.tokenEmbeddings.train is not supported with training.from, whose file has no embeddings",
        (_NEW_TOKENS, Present("training.from")),
    ),
    Rule(
        "training.tokenEmbeddings.train is not supported with ProdigyScheduleFree: each step scales the embeddings, which "
        "its averages do not follow",
        (_NEW_TOKENS, _SCHEDULE_FREE),
    ),
    Rule(
        "training.tokenEmbeddings: tokens, initializer and stopAfter need train: true",
        (
            Compare("training.tokenEmbeddings.train", "==", False),
            AnyOf(
                tuple(
                    Changed(f"training.tokenEmbeddings.{name}")
                    for name in ("tokens", "initializer", "stopAfter")
                )
            ),
        ),
    ),
    Rule(
        "training.captionDropout must be below 1 with tokenEmbeddings.train: empty captions have no new tokens to train",
        (_NEW_TOKENS, Compare("training.captionDropout", "==", Decimal(1))),
    ),
    # Adapters
    Rule(
        "output.formats must be [kohya]: diffusers has no format for LoKr and LoHa",
        (_NOT_LORA, Compare("output.formats", "!=", ("kohya",))),
    ),
    Rule(
        "training.adapter: useDoRA and useRSLoRA are for type LoRA",
        (_NOT_LORA, AnyOf((_is_true("training.adapter.useDoRA"), _is_true("training.adapter.useRSLoRA")))),
    ),
    Rule(
        "training.adapter.factor is for type LoKr",
        (Compare("training.adapter.type", "!=", "LoKr"), Changed("training.adapter.factor")),
    ),
    Rule(
        "training.quantizeBase is not supported with DoRA, LoKr and LoHa, which need the base model's own weights",
        (
            Compare("training.quantizeBase", "!=", "None"),
            AnyOf((_is_true("training.adapter.useDoRA"), _NOT_LORA)),
        ),
    ),
    Rule(
        "training.adapter.convolutionRank needs targets Full: other targets have no convolutions",
        (Compare("training.adapter.targets", "!=", "Full"), Changed("training.adapter.convolutionRank")),
    ),
    Rule(
        "training.adapter.rankDropout is not supported with DoRA, LoKr and LoHa",
        (
            Compare("training.adapter.rankDropout", ">", Decimal(0)),
            AnyOf((_is_true("training.adapter.useDoRA"), _NOT_LORA)),
        ),
    ),
    Rule(
        # Alpha would differ between layers, and diffusers does not read such files in kohya's format.
        "training.adapter.useRSLoRA is not supported with convolutionRank or blocks[].rank",
        (
            _is_true("training.adapter.useRSLoRA"),
            AnyOf((Changed("training.adapter.convolutionRank"), AnyBlock("rank", ">", 0))),
        ),
    ),
    Rule(
        "training.loraPlusRatio is for LoRA matrices, which this job does not train; with method DreamBoothExtract, set "
        "textEncoder.train: true or extraction.factorSteps",
        (
            Changed("training.loraPlusRatio"),
            AnyOf((_NOT_LORA, _TRAINS_NO_ADAPTER)),
        ),
    ),
    Rule(
        "training.adapter.blocks must name each block once",
        (Repeated("training.adapter.blocks", "block"),),
    ),
    Rule(
        "training.adapter.blocks: each entry must set rank or a learningRateScale other than 1, and no learningRateScale "
        "with rank 0, which has no adapter",
        (AnyBlockWithoutEffect(),),
    ),
    # Optimizers and learning rates
    Rule(
        "training.loraPlusRatio and training.adapter.blocks[].learningRateScale are not supported with Prodigy, "
        "which takes one rate",
        (
            _is("training.optimizer", "Prodigy"),
            AnyOf((Changed("training.loraPlusRatio"), AnyBlock("learningRateScale", "!=", 1))),
        ),
    ),
    Rule(
        "training.learningRate must be at least 0.1 with Prodigy, whose own estimate it multiplies; leave it unset",
        (_PRODIGY, Compare("training.learningRate", "<", Decimal("0.1"))),
    ),
    Rule(
        "training.textEncoder.learningRate must equal training.learningRate with Prodigy; leave it unset",
        (
            _is("training.optimizer", "Prodigy"),
            Compare("training.textEncoder.learningRate", "!=", other="training.learningRate"),
        ),
    ),
    Rule(
        "training.textEncoder.learningRate must be at least 0.1 with ProdigyScheduleFree, whose own estimate it "
        "multiplies; leave it unset",
        (
            _SCHEDULE_FREE,
            _is_true("training.textEncoder.train"),
            Compare("training.textEncoder.learningRate", "<", Decimal("0.1")),
        ),
    ),
    Rule(
        "training.textEncoder.learningRate needs textEncoder.train: true",
        (
            Compare("training.textEncoder.train", "==", False),
            AnyOf(
                (
                    AllOf((_NOT_PRODIGY, Changed("training.textEncoder.learningRate"))),
                    AllOf(
                        (
                            _SCHEDULE_FREE,
                            Compare("training.textEncoder.learningRate", "!=", other="training.learningRate"),
                        )
                    ),
                )
            ),
        ),
    ),
    Rule(
        "training.tokenEmbeddings.learningRate must equal training.learningRate with Prodigy; leave it unset",
        (
            _is("training.optimizer", "Prodigy"),
            Compare("training.tokenEmbeddings.learningRate", "!=", other="training.learningRate"),
        ),
    ),
    Rule(
        "training.tokenEmbeddings.learningRate needs tokenEmbeddings.train: true",
        (
            Compare("training.tokenEmbeddings.train", "==", False),
            Compare("training.optimizer", "!=", "Prodigy"),
            Changed("training.tokenEmbeddings.learningRate"),
        ),
    ),
    Rule(
        "training.lrScheduler and training.lrWarmupSteps are not supported with ProdigyScheduleFree, "
        "which takes no schedule",
        (
            _SCHEDULE_FREE,
            AnyOf((Changed("training.lrScheduler"), Changed("training.lrWarmupSteps"))),
        ),
    ),
    Rule(
        "training.emaDecay is not supported with ProdigyScheduleFree, which averages the weights itself",
        (_SCHEDULE_FREE, Changed("training.emaDecay")),
    ),
    Rule(
        "training.lrWarmupSteps must be below training.maxSteps: the learning rate would not reach its value",
        (Compare("training.lrWarmupSteps", ">=", other="training.maxSteps"),),
    ),
    Rule(
        "training.lrWarmupSteps must be above 0 with lrScheduler constant_with_warmup",
        (
            _is("training.lrScheduler", "constant_with_warmup"),
            Compare("training.lrWarmupSteps", "==", 0),
        ),
    ),
    Rule(
        "training.lrSchedulerCycles is for lrScheduler cosine_with_restarts",
        (
            Compare("training.lrScheduler", "!=", "cosine_with_restarts"),
            Changed("training.lrSchedulerCycles"),
        ),
    ),
    Rule(
        "training.lrSchedulerCycles must be at most half of the steps after lrWarmupSteps",
        (
            _is("training.lrScheduler", "cosine_with_restarts"),
            Positive(
                (
                    (2, ("training.lrSchedulerCycles",)),
                    (-1, ("training.maxSteps",)),
                    (1, ("training.lrWarmupSteps",)),
                )
            ),
        ),
    ),
    Rule(
        "training.lrSchedulerPower is for lrScheduler polynomial",
        (Compare("training.lrScheduler", "!=", "polynomial"), Changed("training.lrSchedulerPower")),
    ),
    Rule(
        "training.lrSchedulerEndRatio is for learning rates that fall: linear, cosine, cosine_with_restarts, polynomial",
        (
            _is("training.lrScheduler", "constant", "constant_with_warmup"),
            Changed("training.lrSchedulerEndRatio"),
        ),
    ),
    # Speed
    Rule(
        "training.compile: Always needs a GPU: set resources.train.gpus, or leave training.compile at Auto",
        (_is("training.compile", "Always"), Compare("resources.train.gpus", "==", 0)),
    ),
    Rule(
        "training.compile: Always is not supported with textEncoder.train, tokenEmbeddings.train and adapter.rankDropout, "
        "whose steps change on the CPU; leave training.compile at Auto",
        (_is("training.compile", "Always"), _CHANGES_ON_CPU),
    ),
    Rule(
        "training.mixedPrecision: fp16 does not run on a CPU; set it to fp32 or bf16, or set resources.train.gpus",
        (_is("training.mixedPrecision", "fp16"), Compare("resources.train.gpus", "==", 0)),
    ),
    # Objective
    Rule(
        "training.loss: huberC and huberSchedule are for type Huber",
        (
            Compare("training.loss.type", "!=", "Huber"),
            AnyOf((Changed("training.loss.huberC"), Changed("training.loss.huberSchedule"))),
        ),
    ),
    Rule(
        "training.snrGamma is not used with loss.weighting Debiased",
        (_is("training.loss.weighting", "Debiased"), Changed("training.snrGamma")),
    ),
    Rule(
        "training.timesteps: mean and std are for distribution LogitNormal",
        (
            Compare("training.timesteps.distribution", "!=", "LogitNormal"),
            AnyOf((Changed("training.timesteps.mean"), Changed("training.timesteps.std"))),
        ),
    ),
    Rule(
        "training.timesteps.min must be below training.timesteps.max",
        (Compare("training.timesteps.min", ">=", other="training.timesteps.max"),),
    ),
    # Images
    Rule(
        "training.augmentation.cropVariants needs cropJitter above 0: otherwise all crops are the same",
        (
            Compare("training.augmentation.cropJitter", "==", Decimal(0)),
            Changed("training.augmentation.cropVariants"),
        ),
    ),
    Rule(
        "training.augmentation.extraResolutions must be below training.resolution, which memory is planned for",
        (AnyItemAtLeast("training.augmentation.extraResolutions", "training.resolution"),),
    ),
    Rule(
        "training.augmentation.extraResolutions must name each resolution once",
        (Repeated("training.augmentation.extraResolutions"),),
    ),
    # Previews and files
    Rule(
        "training.preview.prompts must name each prompt once",
        (Repeated("training.preview.prompts"),),
    ),
    Rule("training.variants must name each variant once", (Repeated("training.variants", "name"),)),
    Rule(
        "training.variants needs validation.everySteps: the variant to publish is chosen by measurements",
        (Changed("training.variants"), _NO_MEASUREMENT),
    ),
    Rule(
        "training.variants is not supported with method DreamBoothExtract",
        (Changed("training.variants"), _EXTRACT),
    ),
    Rule(
        "training.variants: rank, alpha and targets are not supported with training.from, which has one of each",
        (
            Present("training.from"),
            AnyOf((AnyVariantSets("rank"), AnyVariantSets("alpha"), AnyVariantSets("targets"))),
        ),
    ),
    Rule(
        "training.variants: seed is not supported with priorPreservation or augmentation.cropJitter, whose images all "
        "variants share",
        (
            AnyVariantSets("seed"),
            AnyOf(
                (
                    _is_true("training.priorPreservation.enabled"),
                    Compare("training.augmentation.cropJitter", ">", Decimal(0)),
                )
            ),
        ),
    ),
    Rule("output.formats must name each format once", (Repeated("output.formats"),)),
    # Validation
    Rule(
        "training.validation.heldOutImages must be below dataset.maxImages",
        (Compare("training.validation.heldOutImages", ">=", other="dataset.maxImages"),),
    ),
    Rule(
        "training.validation: patience, publish, samples, scores and heldOutImages need everySteps above 0: "
        "nothing is measured without it",
        (
            _NO_MEASUREMENT,
            AnyOf(
                tuple(
                    Changed(f"training.validation.{name}")
                    for name in ("patience", "publish", "samples", "heldOutImages", "scores")
                )
            ),
        ),
    ),
    Rule(
        "training.validation: scores and publish BestScore are not supported with method DreamBoothExtract",
        (
            _EXTRACT,
            AnyOf(
                (
                    _is_true("training.validation.scores"),
                    Compare("training.validation.publish", "==", "BestScore"),
                )
            ),
        ),
    ),
    # Annotation
    Rule(
        "annotation: model, instructions and limits.maxCostUSD are for mode LLM",
        (
            Compare("annotation.mode", "!=", "LLM"),
            AnyOf(
                (
                    Changed("annotation.model"),
                    Changed("annotation.instructions"),
                    Changed("annotation.limits.maxCostUSD"),
                )
            ),
        ),
    ),
    Rule(
        "annotation.existingCaptions must be Keep with mode Existing, which has no other captions",
        (_is("annotation.mode", "Existing"), Changed("annotation.existingCaptions")),
    ),
    Rule(
        "annotation.approvedCaptions needs approval: Required",
        (
            Compare("annotation.approval", "!=", "Required"),
            Changed("annotation.approvedCaptions"),
        ),
    ),
    Rule(
        "annotation.onCaptionFailure is not supported with mode Template, where every image gets a caption",
        (_is("annotation.mode", "Template"), Changed("annotation.onCaptionFailure")),
    ),
    Rule(
        "annotation.masks must be Own with concept.type Style: a style is in the whole image",
        (Changed("annotation.masks"), _is("concept.type", "Style")),
    ),
    Rule(
        "annotation.masks must be Own with training.masking.outsideWeight 1, which uses no masks",
        (
            Changed("annotation.masks"),
            Compare("training.masking.outsideWeight", "==", Decimal(1)),
        ),
    ),
)

SMALLEST_USEFUL_RATE = Decimal("1e-8")
"""Learning rate below which a million steps of an optimizer of Adam's kind change a weight by less than 0.01."""

HIGH_TUNING_RATE = Decimal("2e-5")
"""Learning rate above which fine-tuning SDXL's UNet degrades images of other prompts than the concept's."""


def _slow(field: str, trained: str = "") -> Rule:
    """Build the advice about a learning rate that is too low to train anything."""
    return Rule(
        f"{field} is below {SMALLEST_USEFUL_RATE}, so that the training changes almost nothing; usual rates are 1e-6 to 1e-3",
        (
            *([_is_true(trained)] if trained else []),
            Compare(field, "<", SMALLEST_USEFUL_RATE),
        ),
    )


ADVICE: tuple[Rule, ...] = (
    _slow("training.learningRate"),
    _slow("training.textEncoder.learningRate", "training.textEncoder.train"),
    _slow("training.tokenEmbeddings.learningRate", "training.tokenEmbeddings.train"),
    Rule(
        "training.adapter.blocks: an entry has no effect: its rank is that of training.rank, and it sets no "
        "learningRateScale",
        (AnyBlockOfCommonRank(),),
    ),
    Rule(
        "training.variants: two variants have the same settings, so the second one trains the same adapter again",
        (EqualVariants(),),
    ),
    Rule(
        "training.variants: the variant with the lowest loss on the training images is published, which prefers the one "
        "that overfits most; set validation.heldOutImages, or validation.scores or publish BestScore",
        (VariantsByTrainingImages(),),
    ),
    Rule(
        "training.captionDropout is 1, so that every caption is empty and the token is not trained; set it below 1",
        (Compare("training.captionDropout", "==", Decimal(1)),),
    ),
    Rule(
        "training.adapter.useDoRA: LyCORIS reads DoRA in kohya's format exactly, ComfyUI approximately, "
        "AUTOMATIC1111 wrongly; diffusers reads it from the diffusers file only",
        (_is_true("training.adapter.useDoRA"), Compare("output.formats", "!=", ("diffusers",))),
    ),
    Rule(
        "training.priorPreservation with concept.type Style: the class is the medium, so the class images are "
        "generated from 'an image in CLASS style' without the token; set enabled: true and classPrompt for others",
        (
            _is("concept.type", "Style"),
            _is_true("training.priorPreservation.enabled"),
            Compare("training.priorPreservation.classPrompt", "==", ""),
        ),
    ),
    Rule(
        "training.learningRate is above 2e-5, which is high for method DreamBoothExtract: it trains the UNet's own "
        "weights, for which 1e-6 to 5e-6 is usual; with a training.recipe, leave it unset",
        (_EXTRACT, _NOT_PRODIGY, Compare("training.learningRate", ">", HIGH_TUNING_RATE)),
    ),
    Rule(
        "training.extraction.factorSteps trains the extracted factors at training.learningRate, which changes an adapter "
        "little below 2e-5",
        (
            _EXTRACT,
            _NOT_PRODIGY,
            Compare("training.extraction.factorSteps", ">", 0),
            Compare("training.learningRate", "<", HIGH_TUNING_RATE),
        ),
    ),
    Rule(
        "training.alpha has no effect with method DreamBoothExtract, unless extraction.factorSteps trains the factors or "
        "textEncoder.train is true",
        (
            _TRAINS_NO_ADAPTER,
            Changed("training.alpha"),
            Compare("training.alpha", "!=", other="training.rank"),
        ),
    ),
    Rule(
        "training.validation: samples is below heldOutImages: the held-out images above it are neither trained on nor "
        "measured",
        (Compare("training.validation.samples", "<", other="training.validation.heldOutImages"),),
    ),
    Rule(
        "training.preview.everySteps is not below maxSteps: there are previews after the last step only",
        (
            Changed("training.preview.everySteps"),
            Compare("training.preview.everySteps", ">=", other="training.maxSteps"),
        ),
    ),
    Rule(
        "training.checkpoint: everySteps is not below maxSteps: a lost pod starts again from the first step",
        (
            Changed("training.checkpoint"),
            Compare("training.checkpoint.everySteps", ">=", other="training.maxSteps"),
        ),
    ),
    Rule(
        "training.validation: everySteps is not below maxSteps, so that only the last step is measured; publish then has "
        "no effect",
        (
            Changed("training.validation.publish"),
            Compare("training.validation.everySteps", ">=", other="training.maxSteps"),
        ),
    ),
    Rule(
        "training.validation.patience has no effect: maxSteps is reached before so many measurements",
        (
            Compare("training.validation.patience", ">", 0),
            Positive(
                (
                    (1, ("training.validation.patience", "training.validation.everySteps")),
                    (1, ("training.validation.everySteps",)),
                    (-1, ("training.maxSteps",)),
                    (1, ()),
                )
            ),
        ),
    ),
    Rule(
        "training.tokenEmbeddings.stopAfter is within the warm-up: the embeddings never reach their learning rate",
        (
            _NEW_TOKENS,
            AnyOf(
                (
                    Positive(
                        (
                            (1, ("training.lrWarmupSteps",)),
                            (-1, ("training.tokenEmbeddings.stopAfter", "training.maxSteps")),
                        )
                    ),
                    # a single step, whose rate is 0
                    AllOf(
                        (
                            Compare("training.lrWarmupSteps", ">", 0),
                            Not(
                                Positive(
                                    (
                                        (1, ("training.tokenEmbeddings.stopAfter", "training.maxSteps")),
                                        (-1, ()),
                                    )
                                )
                            ),
                        )
                    ),
                )
            ),
        ),
    ),
)
"""Settings that are accepted with a warning."""
