"""Tolerant parsing of the fields in a model's reply.

Many services do not enforce the requested schema. Replies may be in code fences, follow reasoning, or spell the keys
differently. The parser accepts these forms and never adds words that the reply does not contain.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

_TAG = r"(?:\w+:)?(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad)"
START_OF_THOUGHTS = re.compile(
    rf"<{_TAG}\b[^<>]{{0,200}}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<unused94>|<\|channel\|>(?:analysis|commentary)<\|message\|>",
    re.IGNORECASE,
)
"""Marks with which families of models begin their reasoning: DeepSeek and Qwen, Mistral, Kimi, MedGemma, gpt-oss."""
END_OF_THOUGHTS = re.compile(
    rf"</{_TAG}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<unused95>|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
TRAILING_COMMA = re.compile(r",\s*(?=[}\]])")
MAX_STARTS = 200
"""Maximum number of braces that are tried as the beginning of an object."""
MAX_DEPTH = 4
"""Depth to which objects and lists in a reply are searched."""
MAX_LITERAL = 20_000
"""Maximum number of characters in which an object that is not JSON is searched."""
MAX_ENDS = 10
"""Maximum number of braces that are tried as the end of an object that is not JSON."""
CURLY_QUOTES = re.compile("[“”„‟]")
COMMENT = re.compile(r"(?<=[\s,{])(?://|#)[^\n]*")
BARE_KEY = re.compile(r"([{,]\s*)([A-Za-z_]\w*)(?=\s*:)")


def read_fields(text: str, names: Collection[str], truncated: bool = False) -> dict[str, str] | None:
    """Return the values of the named keys; None when no object in the reply has any of them.

    Missing and null values are empty strings. Keys of other names are dropped. A reply without an object may have a line
    for each key instead.

    Args:
        truncated: whether the reply was cut off. Its lines are then not read, because the last one is not complete.
    """
    best: dict[str, str] | None = None
    for data, _ in _objects(text):
        for candidate in _dictionaries(data):
            matches = _pick(candidate, names)
            # The first object with text is used. One with empty values is used only if no other follows.
            if matches and any(matches.values()):
                return {name: matches.get(name, "") for name in names}
            if matches and best is None:
                best = dict.fromkeys(names, "")
    return best if best or truncated else _labelled_lines(text, names)


def _labelled_lines(text: str, names: Collection[str]) -> dict[str, str] | None:
    """Return the values of lines such as `- **Setting:** on a lawn`; None unless at least three keys have a line."""
    values: dict[str, str] = {}
    by_spelling = {_spelling(name): name for name in names}
    for line in _without_thoughts(text)[0].splitlines():
        label, colon, value = line.partition(":")
        name = by_spelling.get(_spelling(re.sub(r"^\W*\d+\.", "", label)))
        if colon and name is not None and name not in values:
            values[name] = value.strip(" \t*_`\"',")
    return (
        {name: values.get(name, "") for name in names} if len(values) >= 3 and any(values.values()) else None
    )


def _objects(text: str) -> Iterator[tuple[Any, str]]:
    """Yield the JSON objects in a reply, in their order, each with the text behind it.

    An object inside another one is not yielded by itself.
    """
    plain, unfinished = _without_thoughts(text)
    yield from _scan(plain)
    # The reasoning does not end. Objects in it are drafts, unless the last one also ends the reply.
    objects = list(_scan(unfinished))
    if objects and not objects[-1][1].strip(" \n\r\t`"):
        yield objects[-1]


def _without_thoughts(text: str) -> tuple[str, str]:
    """Return a reply without its reasoning, and the reasoning that has no end, which may be the reply itself."""
    plain, parts, position = text.replace("\ufeff", ""), [], 0
    while start := START_OF_THOUGHTS.search(plain, position):
        parts.append(plain[position : start.start()])
        if (end := END_OF_THOUGHTS.search(plain, start.end())) is None:
            return " ".join(parts).strip(), plain[start.end() :].strip()
        position = end.end()
    reply = " ".join([*parts, plain[position:]])
    # A chat template may contain the opening mark, so that the reply has only the closing one.
    ends = list(END_OF_THOUGHTS.finditer(reply))
    return (reply[ends[-1].end() :] if ends else reply).strip(), ""


def _scan(plain: str) -> Iterator[tuple[Any, str]]:
    """Yield the objects in a text, in their order, each with the text behind it."""
    decoder = json.JSONDecoder(strict=False)
    if plain.startswith('"'):  # JSON inside a JSON string
        try:
            inner, _ = decoder.raw_decode(plain)
        except ValueError:
            inner = ""
        plain = inner if isinstance(inner, str) and "{" in inner else plain
    objects = list(_scan_json(plain))
    yield from objects or _scan_literals(plain)


def _scan_json(plain: str) -> Iterator[tuple[Any, str]]:
    decoder = json.JSONDecoder(strict=False)
    position = plain.find("{")
    for _ in range(MAX_STARTS):
        if position < 0:
            return
        for source in (plain[position:], TRAILING_COMMA.sub("", plain[position:])):
            try:
                data, length = decoder.raw_decode(source)
            except (ValueError, RecursionError):
                continue
            yield data, source[length:]
            # Continue behind the object. The length is wrong by the commas that were removed, which only means that
            # a part of the object may be read again.
            position += length - 1
            break
        position = plain.find("{", position + 1)


def _scan_literals(plain: str) -> Iterator[tuple[Any, str]]:
    """Yield an object that is not JSON: with escaped or curly quotes, comments or bare keys, or a literal of Python."""
    text = html.unescape(plain[:MAX_LITERAL]).replace('\\"', '"')
    text = COMMENT.sub("", CURLY_QUOTES.sub('"', text))
    if (start := text.find("{")) < 0:
        return
    ends = [match.end() for match in re.finditer("}", text)][-MAX_ENDS:]
    for end in reversed(ends):
        source = TRAILING_COMMA.sub("", text[start:end])
        for parse in (json.loads, ast.literal_eval):
            # Apostrophes in a text are no quotes, so that keys are only quoted for JSON.
            quoted = BARE_KEY.sub(r'\1"\2"', source) if parse is json.loads else source
            try:
                data = parse(quoted)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(data, dict):
                yield data, text[end:]
                return


def _dictionaries(data: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield the dictionaries in a value, outer ones first."""
    if depth > MAX_DEPTH:
        return
    if isinstance(data, dict):
        yield data
        for value in data.values():
            yield from _dictionaries(value, depth + 1)
    elif isinstance(data, list):
        for value in data:
            yield from _dictionaries(value, depth + 1)


def _pick(data: Mapping[str, Any], names: Collection[str]) -> dict[str, str]:
    by_spelling = {_spelling(name): name for name in names}
    matches: dict[str, str] = {}
    for key, value in data.items():
        name = by_spelling.get(_spelling(key))
        if name is not None and not matches.get(name):
            matches[name] = _text(value)
    return matches


def _spelling(key: str) -> str:
    return re.sub(r"[\W_]", "", key).casefold()


def _text(value: Any, depth: int = 0) -> str:
    """Return a value as text; empty for numbers and booleans, which describe nothing, and for deeply nested parts."""
    if isinstance(value, str):
        return value
    if depth > MAX_DEPTH:
        return ""
    if isinstance(value, dict):
        # A model that fills in the schema repeats its types: {"type": "string", "value": "close-up"}.
        value = [item for key, item in value.items() if key != "type"]
    items = value if isinstance(value, list) else ()
    return ", ".join(text for item in items if (text := _text(item, depth + 1)))
