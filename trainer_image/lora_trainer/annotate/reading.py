"""Tolerant parsing of the fields in a model's reply.

Many services do not enforce the requested schema. Replies may be in code fences, follow reasoning, or spell the keys
differently. The parser accepts these forms and never adds words that the reply does not contain.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
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
MAX_CANDIDATES = 10
"""Maximum number of objects of one reply that are tried as its caption."""
MAX_PART = 2_000
"""Maximum number of characters of a value in an object that is not JSON."""
MAX_ENDS = 10
"""Maximum number of braces that are tried as the end of an object that is not JSON."""
QUOTES = "\"'“”„‟«»"
PART = re.compile(rf"[{QUOTES}](.*)[{QUOTES}][\s,;}}\]).]*\Z", re.DOTALL)
"""A value in quotation marks, which may contain further ones, with what follows it in an object."""
INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u2060"))
FULL_WIDTH = str.maketrans("＂＇：，；｛｝［］＝\u00a0", "\"':,;{}[]= ")
"""Characters of East Asian keyboards in the place of JSON's, and the space that does not break."""
CURLY_QUOTES = re.compile("[“”„‟]")
COMMENT = re.compile(r"(?<=[\s,{])(?://|#)[^\n]*")
BARE_KEY = re.compile(r"([{,]\s*)([A-Za-z_]\w*)(?=\s*:)")


def read_fields(text: str, names: Collection[str], truncated: bool = False) -> list[dict[str, str]]:
    """Return the values of the named keys, once for each object in the reply that has any of them.

    Objects with more of the keys come first, and those without text last. Missing and null values are empty strings.
    Keys of other names are dropped. A reply without a complete object may have a part for each key instead.

    Args:
        truncated: whether the reply was cut off. Only complete objects are then read, because the last part is not
            complete.
    """
    objects = [data for data, _ in _objects(text)]
    # A list of names with their values is no object itself.
    dictionaries = [*(item for data in objects for item in _dictionaries(data)), _pairs(objects)]
    candidates = [matches for item in dictionaries if (matches := _pick(item, names))]
    if len(candidates) > 1 and all(len(matches) == 1 for matches in candidates):
        candidates = [_union(candidates)]  # an object for each key
    if not any(any(matches.values()) for matches in candidates) and not truncated:
        plain = _without_thoughts(text)[0]
        parts = (read(plain, names) for read in (_labelled_lines, _tags, _labelled_parts))
        candidates = next(([values] for values in parts if values), candidates)
    candidates.sort(key=lambda matches: (not any(matches.values()), -len(matches)))
    return [{name: matches.get(name, "") for name in names} for matches in candidates[:MAX_CANDIDATES]]


def strings_in(text: str) -> Iterator[str]:
    """Yield the texts in the objects of a reply, such as a refusal in `{"error": "I cannot help with that"}`."""
    for data, _ in _objects(text):
        for item in _dictionaries(data):
            yield from (value for value in item.values() if isinstance(value, str))


def _union(candidates: Iterable[Mapping[str, str]]) -> dict[str, str]:
    values: dict[str, str] = {}
    for matches in candidates:
        values |= {name: text for name, text in matches.items() if not values.get(name)}
    return values


def _labelled_lines(plain: str, names: Collection[str]) -> dict[str, str] | None:
    """Return the values of lines such as `- **Setting:** on a lawn`; None unless at least three keys have a line.

    Rows of a table and assignments count as well: `| setting | on a lawn |`, `setting = "on a lawn"`.
    """
    values: dict[str, str] = {}
    by_spelling = {_spelling(name): name for name in names}
    for line in plain.splitlines():
        label, separator, value = _cut_label(line)
        name = by_spelling.get(_spelling(label))
        if separator and name is not None and name not in values:
            values[name] = value.strip(" \t*_`\"',|")
    return values if len(values) >= 3 and any(values.values()) else None


def _cut_label(line: str) -> tuple[str, str, str]:
    match = re.match(r"\s*\|?([^:=|]{1,80})([:=|])", line)
    return (match[1], match[2], line[match.end() :]) if match else ("", "", "")


def _tags(plain: str, names: Collection[str]) -> dict[str, str] | None:
    """Return the values of `<setting>on a lawn</setting>`; None unless at least two keys have such a tag."""
    keys = "|".join(map(re.escape, names))
    values: dict[str, str] = {}
    for match in re.finditer(rf"<({keys})>([^<]{{0,{MAX_PART}}})</\1>", plain, re.IGNORECASE):
        values.setdefault(match[1].lower(), match[2].strip())
    return values if len(values) >= 2 and any(values.values()) else None


def _labelled_parts(plain: str, names: Collection[str]) -> dict[str, str] | None:
    """Return the values of a damaged object: without its last brace, or with quotation marks inside its texts.

    A value reaches up to the next key or the end. The last one is left out if its closing quotation mark is missing.

    Returns:
        None unless at least three keys are there.
    """
    keys = "|".join(map(re.escape, names))
    # Bounded repetitions keep the search linear.
    key = rf"[{{,;\n]\s{{0,20}}[{QUOTES}]({keys})[{QUOTES}]\s{{0,20}}[:=]\s{{0,20}}"
    starts = list(re.finditer(key, plain, re.IGNORECASE))
    ends = [start.start() for start in starts[1:]] + [len(plain.rstrip("`\n "))]
    values: dict[str, str] = {}
    for start, end in zip(starts, ends, strict=False):
        name = start[1].lower()
        match = PART.match(plain[start.end() : min(end, start.end() + MAX_PART)])
        if match and name not in values:
            values[name] = match[1]
    return values if len(values) >= 3 and any(values.values()) else None


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
    plain, parts, position = text.translate(INVISIBLE), [], 0
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
    text = html.unescape(plain[:MAX_LITERAL]).replace('\\"', '"').translate(FULL_WIDTH)
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
        if pairs := _pairs(data):
            yield pairs
        for value in data:
            yield from _dictionaries(value, depth + 1)
    elif (
        isinstance(data, str) and data.lstrip()[:1] == "{"
    ):  # JSON in a string, as the arguments of a tool's call
        for inner, _ in _scan_json(data[:MAX_LITERAL]):
            yield from _dictionaries(inner, depth + 1)


def _pairs(items: list[Any]) -> dict[str, Any]:
    """Return a list of names with their values as a dictionary: [{"name": "setting", "value": "on a lawn"}]."""
    pairs = {}
    for item in items:
        if isinstance(item, dict) and len(item) == 2:
            name, value = item.values()
            if isinstance(name, str):
                pairs[name] = value
    return pairs


def _pick(data: Mapping[str, Any], names: Collection[str]) -> dict[str, str]:
    by_spelling = {_spelling(name): name for name in names}
    matches: dict[str, str] = {}
    for key, value in data.items():
        name = by_spelling.get(_spelling(key))
        if name is not None and not matches.get(name):
            matches[name] = _text(value)
    return matches


def _spelling(key: str) -> str:
    """Return a key without its number, remarks in brackets, punctuation and case: `2. Setting (where)`."""
    return re.sub(r"^[\W\d_]+|\([^)]*\)|[\W_]", "", key[:200]).casefold()


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
