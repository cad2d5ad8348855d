"""What is wrong with a set of captions, wherever they come from."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from .caption import PREAMBLE, REFUSAL
from .tokens import TEXT_TOKENS, count_tokens


class Problem(StrEnum):
    EMPTY = "empty"
    REFUSAL = "refusal"
    PREAMBLE = "preamble"
    MISSING_TRIGGER = "missing-trigger"
    OTHER_CLASS = "inconsistent-class"
    OVER_BUDGET = "over-budget"
    REPEATED_PHRASE = "repeated-phrase"
    DUPLICATE = "duplicate"


@dataclass(frozen=True)
class Finding:
    file_name: str
    problem: Problem
    message: str


def check_captions(captions: Mapping[str, str], token: str, class_name: str = "") -> list[Finding]:
    """Everything that makes captions bad for training, in the captions' order.

    Args:
        captions: text by file name.
        token: the trigger that every caption must name; empty: not checked.
        class_name: the noun that must follow it; empty: the one that most captions have there.
    """
    noun = class_name or (_usual_noun(captions, token) if token else "")
    same = _duplicates(captions)
    findings = []
    for name, text in captions.items():
        if not text.strip():
            findings.append(Finding(name, Problem.EMPTY, "no text"))
            continue
        findings += [Finding(name, problem, message) for problem, message in _check(text, token, noun)]
        if name in same:
            findings.append(Finding(name, Problem.DUPLICATE, f"the same as {same[name]}"))
    return findings


def usual_trigger(captions: Mapping[str, str]) -> str:
    """The word after 'a photo of' in most captions; empty when there is none."""
    found = Counter(
        match[1] for text in captions.values() if (match := re.search(r"\ba photo of (\w[\w-]*)", text))
    )
    word, count = found.most_common(1)[0] if found else ("", 0)
    return word if word not in ("a", "an", "the") and count * 2 > len(captions) else ""


def _check(text: str, token: str, noun: str) -> Iterator[tuple[Problem, str]]:
    if match := REFUSAL.search(text):
        yield Problem.REFUSAL, f"a model declined: {match[0]!r}"
    if match := PREAMBLE.search(text):
        yield Problem.PREAMBLE, f"talk, not description: {match[0]!r}"
    if token:
        if not re.search(_word(token), text, re.IGNORECASE):
            yield Problem.MISSING_TRIGGER, f"it does not name {token!r}"
        elif noun and not re.search(_word(f"{token} {noun}"), text, re.IGNORECASE):
            yield Problem.OTHER_CLASS, f"{token!r} is not followed by {noun!r}"
    count = count_tokens(text)
    if count > TEXT_TOKENS:
        yield Problem.OVER_BUDGET, f"{count} CLIP tokens; what is beyond {TEXT_TOKENS} is not read"
    if phrase := _repeated(text):
        yield Problem.REPEATED_PHRASE, f"it says {phrase!r} more than once"


def _word(text: str) -> str:
    """A pattern for whole words, whatever space is between them."""
    return r"(?<!\w)" + r"\s+".join(map(re.escape, text.split())) + r"(?!\w)"


def _repeated(text: str, length: int = 3) -> str:
    """The first run of three words that comes twice."""
    words = re.findall(r"\w[\w'-]*", text.lower())
    seen: set[tuple[str, ...]] = set()
    for start in range(len(words) - length + 1):
        phrase = tuple(words[start : start + length])
        if phrase in seen:
            return " ".join(phrase)
        seen.add(phrase)
    return ""


def _usual_noun(captions: Mapping[str, str], token: str) -> str:
    nouns = Counter(
        match[1].lower()
        for text in captions.values()
        if (match := re.search(_word(token) + r"\s+(\w[\w-]*)", text, re.IGNORECASE))
    )
    return nouns.most_common(1)[0][0] if nouns else ""


def _duplicates(captions: Mapping[str, str]) -> dict[str, str]:
    """For each caption that an earlier image has already: that image."""
    by_text: dict[str, list[str]] = defaultdict(list)
    for name, text in captions.items():
        by_text[" ".join(text.lower().split())].append(name)
    return {name: names[0] for names in by_text.values() for name in names[1:]}
