"""Checks of a set of captions: the rules for each caption, and comparisons between captions."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..whole_words import has_word, word_pattern
from .rules import Problem, check_words
from .tokens import TEXT_TOKENS, count_tokens

OPENING = r"(?:an? (?:photo|photograph|picture|image|painting|drawing) (?:of|in) )?(?:an? |the )?"
"""A pattern for the words that usually come before the token."""


@dataclass(frozen=True)
class Finding:
    """A problem of one caption."""

    file_name: str
    problem: Problem
    message: str


def check_captions(captions: Mapping[str, str], token: str, class_name: str = "") -> list[Finding]:
    """Check captions and return their problems, in the order of the captions.

    Args:
        captions: text by file name.
        token: the token that every caption must contain; empty: not checked.
        class_name: the class that must follow the token; empty: the word that follows it in most captions.
    """
    noun = class_name or (_usual_noun(captions, token) if token else "")
    same = _duplicates(captions)
    findings = []
    for name, text in captions.items():
        if not text.strip():
            findings.append(Finding(name, Problem.EMPTY, "no text"))
            continue
        findings += [Finding(name, problem, message) for problem, message in check_caption(text, token, noun)]
        if name in same:
            findings.append(Finding(name, Problem.DUPLICATE, f"the same as {same[name]}"))
    return findings


def check_caption(text: str, token: str, noun: str) -> Iterator[tuple[Problem, str]]:
    """Yield the problems of one caption, with a message for each.

    Args:
        token: the token that it must contain; empty: not checked.
        noun: the class that must follow the token; empty: not checked.
    """
    rest = without_opening(text, token, noun)
    if token and not re.search(r"\w", rest):
        yield Problem.TEMPLATE_ONLY, "it names the concept and describes nothing"
    yield from check_words(rest)
    if token:
        if not has_word(text, token):
            yield Problem.MISSING_TOKEN, f"it does not name {token!r}"
        elif noun and not has_word(text, f"{token} {noun}"):
            yield Problem.OTHER_CLASS, f"{token!r} is not followed by {noun!r}"
    count = count_tokens(text)
    if count > TEXT_TOKENS:
        yield Problem.OVER_BUDGET, f"{count} CLIP tokens; what is beyond {TEXT_TOKENS} is not read"


def without_opening(text: str, token: str, noun: str = "") -> str:
    """Remove `a photo of TOKEN CLASS`, which the rules for words do not apply to."""
    if not token:
        return text
    named = f"{token} {noun}" if noun else token
    pattern = rf"{OPENING}{word_pattern(named)}(?: style\b)?|{OPENING}{word_pattern(token)}"
    match = re.search(pattern, text, re.IGNORECASE)
    if match is None:
        return text
    # In the middle of a sentence a pronoun takes the place of the concept, so that the sentence stays complete.
    before, after = text[: match.start()].strip(), text[match.end() :]
    return f"{before} it{after}" if before else after.strip(" ,")


def usual_token(captions: Mapping[str, str]) -> str:
    """Return the word that follows 'a photo of' or 'an image in' in most captions; empty when there is none."""
    matches = Counter(
        match[1]
        for text in captions.values()
        if (match := re.search(r"\b(?:a photo of|an image in) (\w[\w-]*)", text))
    )
    word, count = matches.most_common(1)[0] if matches else ("", 0)
    return word if word not in ("a", "an", "the") and count * 2 > len(captions) else ""


def _usual_noun(captions: Mapping[str, str], token: str) -> str:
    nouns = Counter(
        match[1].lower()
        for text in captions.values()
        if (match := re.search(word_pattern(token) + r"\s+(\w[\w-]*)", text, re.IGNORECASE))
    )
    return nouns.most_common(1)[0][0] if nouns else ""


def _duplicates(captions: Mapping[str, str]) -> dict[str, str]:
    """Map the name of each image to the first image with the same caption, if that is an earlier one."""
    by_text: dict[str, list[str]] = defaultdict(list)
    for name, text in captions.items():
        by_text[" ".join(text.lower().split())].append(name)
    return {name: names[0] for names in by_text.values() for name in names[1:]}
