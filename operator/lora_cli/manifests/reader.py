"""Reader of YAML and JSON that agrees with kubectl, and records the line of each field.

PyYAML and kubectl (go-yaml) read some unquoted text differently: `1e-4` is text for PyYAML and a number for kubectl,
and `y` is text for PyYAML and true for kubectl. The commands must read a manifest as kubectl does. Duplicate keys are
errors, as for kubectl.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Path = tuple[str | int, ...]
"""Path of a value: keys of mappings and indices of lists."""
MAX_BYTES = 2 << 20
MAX_NODES, MAX_DEPTH = 100_000, 100
"""Limits on the number of values, which aliases can multiply, and on the depth of nesting."""
MAX_DIGITS = 250
"""Digits of the longest integer that is converted. Longer ones are beyond every field, and beyond a float in any base."""
SHOWN = 60
"""Characters of a wrong value that a message repeats."""
PLAIN = "plain"
"""Tag that `_Loader` gives to unquoted text."""
YAML_TAG = "tag:yaml.org,2002:"
KEYWORDS: dict[str, Any] = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
INTEGER = re.compile(r"([-+]?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
JSON_SPACE = re.compile(r"[ \t\r\n]*")
BASES = {"x": 16, "b": 2, "o": 8}


class ManifestError(ValueError):
    """Text that kubectl could not read. The message says what is wrong; `line` counts from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass
class Document:
    """One document of a file."""

    data: Any
    lines: dict[Path, int] = field(default_factory=dict)
    """The line of each field, by its path. Lines count from 1."""
    first_line: int = 1
    """The line in the file where the document begins."""

    def line(self, path: Path) -> int:
        """Return the line of a field, or of its nearest parent if the document lacks the field."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, self.first_line)


def read_documents(text: str) -> list[Document]:
    """Read all documents that are not empty.

    Raises:
        ManifestError: when the text is not valid; it has the line of the first error.
    """
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise ManifestError(f"the file has more than {MAX_BYTES >> 20} MiB", 1)
    if text.lstrip().startswith("{"):
        return _read_json(text)
    try:
        documents = _read_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ManifestError(
            f"is not valid YAML: {error.problem or error.context}", mark.line + 1 if mark else 1
        ) from None
    except yaml.YAMLError as error:
        raise ManifestError(f"is not valid YAML: {str(error).splitlines()[0]}", 1) from None
    except RecursionError:
        raise ManifestError("is nested too deeply", 1) from None
    return [document for document in documents if document.data is not None]


def resolve_scalar(text: str) -> Any:
    """Return the value of unquoted text, as kubectl has it after go-yaml and a conversion to JSON.

    go-yaml reads YAML 1.1 with some exceptions.
    """
    if text in KEYWORDS:
        return KEYWORDS[text]
    if not text or text[0] not in "+-.0123456789":
        return text
    if text[0] == ".":
        return _number(float(text)) if FLOAT.fullmatch(text) else text
    plain = text.replace("_", "")
    if match := INTEGER.fullmatch(plain):
        sign, digits = match.groups()
        # `0x1f`, `0b11`, `0o17`, and `017`, which is octal too.
        base = BASES.get(digits[1:2].lower(), 8 if digits.startswith("0") and len(digits) > 1 else 10)
        digits = digits[2:] if digits[1:2].lower() in BASES else digits
        if len(digits) > MAX_DIGITS:
            return -math.inf if sign == "-" else math.inf
        value = int(digits, base)
        value = -value if sign == "-" else value
        # Go keeps integers of 64 bits only; larger ones become floats.
        return value if -(2**63) <= value < 2**63 else _number(float(value))
    return _number(float(plain)) if FLOAT.fullmatch(plain) else text


def _number(value: float) -> int | float:
    """Return a float as Go writes it to JSON: a whole number below 1e21 has no decimal point, so it becomes an int."""
    return int(Decimal(repr(value))) if value.is_integer() and abs(value) < 1e21 else value


class _Loader(yaml.SafeLoader):
    """YAML loader that leaves unquoted text unresolved. `resolve_scalar` resolves it."""

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> Any:
        if kind is ScalarNode:
            return PLAIN if implicit[0] else f"{YAML_TAG}str"
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]

    def process_directives(self) -> Any:
        directives = super().process_directives()  # type: ignore[no-untyped-call]
        if self.yaml_version not in (None, (1, 1)):
            version = ".".join(map(str, self.yaml_version))
            mark = self.peek_token().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"kubectl reads YAML 1.1, not {version}", problem_mark=mark)
        return directives


class _Builder:
    """Converts YAML nodes to data, and records the line of each value."""

    def __init__(self) -> None:
        self._lines: dict[Path, int] = {}
        self._nodes = 0

    def build(self, node: Node) -> Document:
        data = self._value(node, ())
        return Document(data, self._lines, node.start_mark.line + 1)

    def _value(self, node: Node, path: Path) -> Any:
        self._count(node, path)
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, ScalarNode):
            return _scalar(node)
        if isinstance(node, SequenceNode):
            return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._mapping(node, path)

    def _count(self, node: Node, path: Path) -> None:
        """Count a value, and check the limits."""
        self._nodes += 1
        if self._nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise ManifestError("is nested too deeply, or its aliases multiply", node.start_mark.line + 1)

    def _mapping(self, node: Node, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if isinstance(key_node, ScalarNode) and key_node.tag == PLAIN and key_node.value == "<<":
                # Keys of the mapping override merged keys, and earlier sources override later ones.
                for source in self._merge_sources(value_node, path):
                    merged = source | merged
                continue
            key = _key(key_node)
            if key in result:
                where = ".".join(map(str, (*path, key)))
                raise ManifestError(
                    f"{where}: the key {key!r} is already set in line {self._lines[(*path, key)]}", line
                )
            self._lines[(*path, key)] = line
            result[key] = self._value(value_node, (*path, key))
        return merged | result

    def _merge_sources(self, node: Node, path: Path) -> Iterator[dict[str, Any]]:
        for source in node.value if isinstance(node, SequenceNode) else [node]:
            if not isinstance(source, MappingNode):
                raise ManifestError("'<<' must merge mappings", node.start_mark.line + 1)
            # a source without keys of its own has no values that are counted
            self._count(source, path)
            yield self._mapping(source, (*path, "<<"))


def _scalar(node: ScalarNode) -> Any:
    line = node.start_mark.line + 1
    if node.tag == PLAIN:
        value = resolve_scalar(node.value)
    elif node.tag in (f"{YAML_TAG}str", "!"):  # quoted text, or text with an explicit tag
        value = node.value
    elif node.tag in (f"{YAML_TAG}{name}" for name in ("int", "float", "bool", "null")):
        value = resolve_scalar(node.value)
        if isinstance(value, str):
            raise ManifestError(f"{node.value!r} is not of the type of its tag", line)
    else:
        raise ManifestError(f"the tag {node.tag} is not supported", line)
    if isinstance(value, float) and not math.isfinite(value):
        raise ManifestError(f"{node.value[:SHOWN]} has no representation in JSON", line)
    return value


def _key(node: Node) -> str:
    if not isinstance(node, ScalarNode):
        raise ManifestError("a key must be text", node.start_mark.line + 1)
    value = _scalar(node)
    return value if isinstance(value, str) else json.dumps(value)


def _read_yaml(text: str) -> list[Document]:
    nodes = [node for node in yaml.compose_all(text, Loader=_Loader) if node is not None]
    return [_Builder().build(node) for node in nodes]


def _read_json(text: str) -> list[Document]:
    """Read JSON documents, one after another, as `jq` prints them."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise ManifestError(f"the key {repeated!r} is set twice", _line_of(text, repeated))
        return result

    decoder = json.JSONDecoder(
        object_pairs_hook=unique,
        parse_int=lambda digits: int(digits) if len(digits) <= MAX_DIGITS else _finite(digits),
        parse_float=lambda digits: _number(_finite(digits)),
        parse_constant=_finite,
    )
    documents = []
    end, line = 0, 1
    try:
        while (place := _skip_space(text, end)) < len(text):
            line += text.count("\n", end, place)
            data, after = decoder.raw_decode(text, place)
            documents.append(Document(data, {(): line}, line))
            line += text.count("\n", place, after)
            end = after
    except json.JSONDecodeError:
        return _read_flow(text)
    except RecursionError:
        raise ManifestError("is nested too deeply", 1) from None
    return documents


def _skip_space(text: str, place: int) -> int:
    """Return the place of the next character in JSON that is not white space."""
    space = JSON_SPACE.match(text, place)
    return space.end() if space else place


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ManifestError(f"{digits[:SHOWN]} has no representation in JSON", 1)
    return value


def _read_flow(text: str) -> list[Document]:
    """Read text that begins with a brace but is not valid JSON: it may be YAML with flow mappings."""
    try:
        documents = _read_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ManifestError(
            f"is neither valid JSON nor valid YAML: {error.problem}", mark.line + 1 if mark else 1
        ) from None
    except (yaml.YAMLError, RecursionError):
        raise ManifestError("is neither valid JSON nor valid YAML", 1) from None
    if not documents:
        raise ManifestError("holds no data", 1)
    return documents


def _line_of(text: str, key: str) -> int:
    """Return the line of the second occurrence of a key."""
    places = [match.start() for match in re.finditer(re.escape(json.dumps(key)), text)]
    return text.count("\n", 0, places[1] if len(places) > 1 else 0) + 1
