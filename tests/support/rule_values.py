"""Rules of settings, applied to values by path, for `matrix`.

The search for runs checks tens of thousands of them. To build a spec for each would take too long.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from math import prod
from typing import Any

from lora_api import rules
from lora_api.job import JobSpec
from lora_api.rules import RULES, Rule

Row = dict[str, Any]
"""Values by the fields' paths."""


def _wire(value: Any) -> Any:
    """Return a value as a manifest has it."""
    return str(value) if isinstance(value, StrEnum | Decimal) else value


SECTIONS = ("dataset", "concept", "annotation", "training", "output", "resources")
DEFAULTS: Row = {
    path: _wire(rules.default_of(JobSpec, path))
    for section in SECTIONS
    for path in rules.leaves(JobSpec, section)
}
COMPARISONS: dict[str, Any] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _changed(node: Any) -> Iterator[rules.Changed]:
    """Yield the predicates of a rule that ask whether a section is changed."""
    if isinstance(node, rules.Changed):
        yield node
    for inner in getattr(node, "predicates", ()):
        yield from _changed(inner)


LEAVES = {node.field: list(rules.leaves(JobSpec, node.field)) for rule in RULES for node in _changed(rule)}
"""The fields of the sections that rules ask about, by section."""


def holds(node: Any, values: Row) -> bool:
    """Whether a rule, or a predicate of it, applies to values by path. A job to which a rule applies is refused."""
    match node:
        case Rule() | rules.AllOf():
            return all(holds(inner, values) for inner in node.predicates)
        case rules.AnyOf():
            return any(holds(inner, values) for inner in node.predicates)
        case rules.Changed():
            return any(values[path] != DEFAULTS[path] for path in LEAVES[node.field])
        case rules.In():
            return values[node.field] in node.values
        case rules.Compare():
            value = node.value if not node.other else values[node.other]
            return COMPARISONS[node.operator](_plain(values[node.field]), _plain(value))
        case rules.Positive():
            return sum(factor * prod(int(values[path]) for path in paths) for factor, paths in node.terms) > 0
        case rules.Present():
            return False  # training.from, which no run has
    return False  # rules about lists, single blocks and variants: no run has any


def fields_of(node: Any) -> Iterator[str]:
    """Yield the paths of the fields that a rule, or a predicate of it, reads."""
    if isinstance(node, Rule | rules.AnyOf | rules.AllOf):
        for inner in node.predicates:
            yield from fields_of(inner)
    elif isinstance(node, rules.Changed):
        yield from rules.leaves(JobSpec, node.field)
    elif isinstance(node, rules.AnyBlock | rules.AnyBlockWithoutEffect):
        yield "training.adapter.blocks"
    elif isinstance(node, rules.AnyVariantSets):
        yield "training.variants"
    elif isinstance(node, rules.Positive):
        for _, paths in node.terms:
            yield from paths
    else:
        yield node.field
        if getattr(node, "other", ""):
            yield node.other


def _plain(value: Any) -> Any:
    """Return a value that compares as a number where it is one."""
    if isinstance(value, list | tuple):
        return tuple(value)
    try:
        return value if isinstance(value, bool) else Decimal(value)
    except (InvalidOperation, TypeError, ValueError):
        return value
