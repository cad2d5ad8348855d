"""Captions of language models: the fields that a model fills in, and the caption that is assembled from them.

The model never writes the token or the class: `assemble` puts the concept's opening before the fields. The trigger is
thus never missing. Fields are checked and limited in length, so that preambles are removed and an instruction inside
an image can add no more than a few words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from lora_api.job import Concept
from lora_api.redact import redact

from .concept_fields import FIELDS
from .reading import read_fields, strings_in
from .rules import CUT_OFF, LABEL, PLACEHOLDER, PREAMBLE, QUOTED, RULES, Problem
from .tokens import TEXT_TOKENS, count_tokens, cut_to_tokens

FIELD_WORDS = 14
"""Maximum number of words of a field."""
FIELD_CHARACTERS = 2000
"""Number of characters of a field that are read."""
CAPTION_WORDS = 45
"""Maximum number of words of a caption."""
REPLY_CHARACTERS = 200_000
"""Maximum length of a reply that is read, in characters. It may have long reasoning before the JSON."""

QUOTED_REPLY_CHARACTERS = 120
"""Number of characters of a reply that error messages quote."""

MARKS = re.compile(r"<\|?[^<>]{0,40}\|?>")
"""Markup and the special tokens of text encoders."""

DECORATION = re.compile(r"\*\*|__|`+|^\s*(?:#{1,6}|[-*•]|\d{1,2}[.)])\s+")
"""Markdown: emphasis, code, headings and list items."""


class UnusableReplyError(ValueError):
    """A reply without a usable caption. The message says why."""


class DeclinedError(ValueError):
    """A reply in which the model declines to describe the image. The message quotes it."""


def parse_reply(text: str, concept: Concept, truncated: bool = False) -> dict[str, str]:
    """Return the cleaned fields of a reply. A field that breaks a rule is empty.

    Args:
        truncated: whether the reply was cut off. Its fields are then only read from a complete object.

    Raises:
        DeclinedError: when the model declined to describe the image.
        UnusableReplyError: when the reply has no field with a description.
    """
    if not text.strip():
        raise UnusableReplyError("the reply is empty")
    if len(text) > REPLY_CHARACTERS:
        raise UnusableReplyError(f"the reply is longer than {REPLY_CHARACTERS} characters")
    candidates = read_fields(text, FIELDS[concept.type], truncated)
    if not candidates:
        # Refusals are often plain text, or in an object of their own, even when a schema was requested.
        for words in (text, *strings_in(text)):
            if declined := RULES[Problem.REFUSAL](plain_text(words[:FIELD_CHARACTERS])):
                raise DeclinedError(f"{declined} in {_quote(text)}")
        raise UnusableReplyError(f"the reply has none of the fields of the schema: {_quote(text)}")
    problem: UnusableReplyError | None = None
    for raw in candidates:  # a reply may repeat the schema before it fills it in
        try:
            return _clean_fields(raw, concept, text)
        except UnusableReplyError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _clean_fields(raw: Mapping[str, str], concept: Concept, text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    problems: list[str] = []
    kept: set[str] = set()
    for name, text_of_field in raw.items():
        value = text_of_field[:FIELD_CHARACTERS]
        plain = plain_text(value)
        if declined := RULES[Problem.REFUSAL](plain):
            raise DeclinedError(f"{declined} in the field {name!r}")
        phrase = clean_phrase(value, concept)
        problem = _problem(phrase) or _echo(phrase, FIELDS[concept.type])
        if phrase and not problem and phrase.lower() in kept:
            problem = f"it repeats {phrase!r}"
        if problem:
            problems.append(f"{name}: {problem}")
        fields[name] = "" if problem else phrase
        kept.add(phrase.lower())
    filled = sum(bool(phrase) for phrase in fields.values())
    # The same phrase in several fields is a repetition loop of the model, not a description.
    repeated = sum("it repeats" in problem for problem in problems)
    if not filled or (filled == 1 and repeated >= 2):
        why = f" ({'; '.join(problems)})" if problems else ""
        raise UnusableReplyError(f"the reply describes nothing{why}: {_quote(text)}")
    return fields


def _problem(phrase: str) -> str:
    """Return the message of the first rule that a phrase breaks; empty when it breaks none."""
    if not phrase:
        return ""
    return next((message for rule in RULES.values() if (message := rule(phrase))), "")


def _echo(phrase: str, descriptions: Mapping[str, str]) -> str:
    """Return a message if a phrase is a field's description, which small models copy; empty otherwise."""
    low = phrase.lower()
    for description in descriptions.values():
        start = re.split(r"[,;.]", description.lower(), maxsplit=1)[0]
        # A short description, such as 'the light', may begin a good phrase.
        if low == start or (len(start.split()) > 3 and low.startswith(start)):
            return f"it copies the question {start!r}"
    return ""


def clean_phrase(text: str, concept: Concept) -> str:
    """Reduce a field to a plain phrase of at most FIELD_WORDS words.

    The token, labels, markup and placeholders are removed.
    """
    text = plain_text(text)
    text = re.sub(rf"(?<!\w){re.escape(concept.token)}(?!\w)", "", text, flags=re.IGNORECASE)
    text = DECORATION.sub("", text)
    text = _unquoted(text.strip(" .,;:"))
    text = LABEL.sub("", text, count=1) if LABEL.match(text) else text
    text = PREAMBLE.sub("", text)
    if PLACEHOLDER.match(text):
        return ""
    words = text.split()
    if len(words) > FIELD_WORDS:
        text = " ".join(words[:FIELD_WORDS])
        # The cut phrase must not end with an article or a preposition, nor contain half of a quotation.
        while CUT_OFF.search(text):
            text = text.rsplit(" ", 1)[0] if " " in text else ""
        if text.count('"') % 2:
            text = text.replace('"', "")
    return " ".join(text.split()).strip(" .,;:")


def _unquoted(text: str) -> str:
    """Remove quotation marks that enclose the whole text."""
    match = QUOTED.fullmatch(text)
    return text[1:-1].strip() if match else text


def plain_text(text: str) -> str:
    """Return a text as one line, without secrets, control characters and markup in angle brackets."""
    text = unicodedata.normalize("NFC", redact(text))
    # Categories C and Z: control, format and unassigned characters, and separators.
    text = "".join(
        " " if unicodedata.category(c)[0] in "CZ" or c == "\N{REPLACEMENT CHARACTER}" else c for c in text
    )
    return " ".join(MARKS.sub(" ", text).split())


def template(concept: Concept) -> str:
    """Return the caption that only names the concept."""
    return concept.opening


def assemble(fields: Mapping[str, str], concept: Concept) -> str:
    """Join the opening and the fields to a caption of at most TEXT_TOKENS CLIP tokens and CAPTION_WORDS words.

    The first field that does not fit ends the caption. If it is the only one, it is cut between words instead.

    Raises:
        UnusableReplyError: when nothing but the opening is left.
    """
    opening = template(concept)
    parts = [opening]
    for name in FIELDS[concept.type]:
        phrase = fields.get(name, "")
        if not phrase:
            continue
        longer = ", ".join([*parts, phrase])
        if count_tokens(longer) > TEXT_TOKENS or len(longer.split()) > CAPTION_WORDS:
            if len(parts) == 1:
                parts = [cut_to_tokens(longer)]
            break
        parts.append(phrase)
    caption = ", ".join(parts)
    if len(caption) <= len(opening):
        raise UnusableReplyError("no field of the reply fits into a caption")
    return caption


def _quote(text: str) -> str:
    return repr(" ".join(text.split())[:QUOTED_REPLY_CHARACTERS])
