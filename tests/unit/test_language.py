"""Replaced terms are not used again in names, docstrings, messages and docs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [
    *("crds/lora_api", "operator/lora_operator", "operator/lora_cli", "trainer_image/lora_trainer"),
    *("benchmarks", "tools", "docs/site", "charts/lora-training-operator/files", "tests"),
]
OWN_LISTS = {ROOT / "tests/unit/test_language.py", ROOT / "tests/support/captions.py"}
"""Modules whose texts are examples of words to find."""
NAMES = {
    "Shelf": "Indexer",
    "mend": "replace",
    "unsettled": "pending",
    "Wiring": "EventHandlers",
    "sick": "liveness_error",
    "unready": "readiness_error",
    "Look": "Staleness",
    "look_before": "must_read_again",
    "Story": "StatusDraft",
    "wake": "requeue_at",
    "blocked": "record_blockers",
    "QUIET": "SILENT_PHASES",
    "WORRYING": "WARNING_REASONS",
    "latch": "finish_terminal",
    "understand": "validate_resource",
    "complaints": "warning_events",
    "memoryless": "noop_storage",
    "mortal": "has_ttl",
    "leftovers": "orphaned_pods",
    "Buyer": "Captioner",
    "desk": "review_store",
    "ledger": "budget",
    "litter": "ignored",
    "stop_vain_retries": "disable_futile_retries",
    "GARBAGE": "MALFORMED_REPLY",
    "Patience": "Timeouts",
    "captioning": "captions",
    "drawing": "sampling",
    "Learner": "TrainState",
    "rates": "lr_scheduler",
    "Average": "EMA",
    "standing_in": "swapped_parameters",
    "TextTower": "TextEncoder",
    "deviation": "std",
    "chance": "generator",
    "Cut": "CroppedImage",
    "Part": "CropRegion",
    "Gallery": "Previews",
    "Facts": "ReportData",
    "lean": "memory_efficient",
    "is_usual": "is_supported",
    "Wish": "GenerationRequest",
    "Painter": "ImageGenerator",
    "brush": "active",
    "told": "the noun",
    "pictures": "images",
    "photograph": "image",
    "RemoveJob": "DeleteResource",
    "StopStep": "DeleteChildJob",
    "found": "the noun",
    "said": "the noun",
    "wanted": "expected",
    "ours": "the noun",
    "theirs": "the noun",
    "began": "started",
    "begun": "started",
    "lose": "forget",
    "drive": "locate_stage",
    "draws": "rng",
    "tend": "run_kubelet",
    "towers": "text encoders",
    "bought_caption": "cached_caption",
    "is_broken": "applies",
    "watch_start": "requeue_after_start",
    "retry_later": "requeue_with_backoff",
    "drop_condition": "remove_condition",
    "HELD_OPEN_SECONDS": "HELD_OPEN_GRACE",
    "judge": "classifier",
    "undisturbed": "uninterrupted",
    "last_words": "termination_message",
}
"""Replaced names, as whole identifiers, and what is used now."""
ALLOWED = {"tests": {"found"}, "tools/shapes": {"drawing"}}
"""Replaced names that are still used, or are the right word, by folder."""
TEST_WORDS = {"told", "said", "bought", "picture", "pictures", "asked"}
"""Words that names of tests do not contain: reported, paid for, image and requested are used."""
PHRASES = [
    "left the numbers",
    "for want of",
    "is no yaml",
    "is no json",
    "is none of ours",
    "a label of ours",
    "somebody",
    "does not have a say",
    "goes on with",
    "go on with",
    "told by",
    "opinion",
    "what there is",
    "vain",
    "photograph of",
]
"""Phrases that say in a private way what has a usual word."""
OPENINGS = {
    *("Of", "By", "Its", "As", "At", "To", "Until", "Never", "That", "Who", "So", "Then", "With", "Without"),
    *("None", "Only", "Everything", "They", "There"),
}
"""Words that no docstring begins with: it would continue the name that it describes."""
QUESTIONS = {"What", "How", "Why", "Where", "Who"}
"""Words that the docstring of a function does not begin with, which says what the function does or returns."""


@cache
def trees() -> dict[Path, ast.Module]:
    """Parse every module of the packages."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(paths) > 100
    return {path: ast.parse(path.read_text()) for path in paths}


def defined_names(tree: ast.Module) -> Iterator[str]:
    """Names that a module defines: functions, classes, arguments, variables and attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name.strip("_")
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                yield name.strip("_")
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield name.strip("_")


@cache
def texts() -> list[tuple[Path, str]]:
    """Return the docstrings, messages and descriptions of the code, and the docs."""
    strings = [
        (path, node.value)
        for path, tree in trees().items()
        if path not in OWN_LISTS
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    docs = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "charts").rglob("*.txt")]
    return strings + [(path, path.read_text()) for path in docs]


def is_allowed(path: Path, name: str) -> bool:
    """Return whether a replaced name may be used in a module."""
    return any(path.is_relative_to(ROOT / folder) and name in names for folder, names in ALLOWED.items())


def test_no_name_is_a_replaced_term() -> None:
    used = [
        f"{path.relative_to(ROOT)}: {name}; use {NAMES[name]}"
        for path, tree in trees().items()
        for name in [path.stem, *defined_names(tree)]
        if name in NAMES and not is_allowed(path, name)
    ]
    assert used == []


def test_no_test_is_named_by_a_replaced_word() -> None:
    used = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, tree in trees().items()
        for name in defined_names(tree)
        if name.startswith("test_") and TEST_WORDS.intersection(name.split("_"))
    ]
    assert used == []


@pytest.mark.parametrize("phrase", PHRASES)
def test_no_text_has_a_replaced_phrase(phrase: str) -> None:
    pattern = re.compile(rf"\b{re.escape(phrase)}\b", re.IGNORECASE)
    used = [f"{path.relative_to(ROOT)}: {text[:80]}" for path, text in texts() if pattern.search(text)]
    assert used == []


def docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Texts that describe a module, a class, a function or, behind an assignment, a variable or a field."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield node, text.strip()


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    wrong = []
    for path, tree in trees().items():
        for node, text in docstrings(tree):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            first = re.split(r"\W", text, maxsplit=1)[0]
            if first in OPENINGS or (is_function and first in QUESTIONS):
                wrong.append(f"{path.relative_to(ROOT)}: {text[:80]}")
    assert wrong == []
