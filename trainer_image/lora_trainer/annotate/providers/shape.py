"""The optional parts of a request, which are replaced when a service does not accept them.

Compatible services differ in the parameters that they accept. An error response usually names the parameter. Its next
variant is then used for the rest of the run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

LARGEST_LIMIT = re.compile(
    r"(?:at most|less than or equal to|maximum\D{0,60}?|<=|>)\s*(\d{2,7})", re.IGNORECASE
)
"""Words with which services name the largest output limit that they accept."""


@dataclass(frozen=True)
class Option:
    """A part of a request and its variants, the preferred one first."""

    names: re.Pattern[str]
    """A pattern for the part's names in error messages."""
    variants: tuple[str, ...]


class RequestShape:
    """The chosen variant of each option. At first these are the preferred ones."""

    def __init__(self, options: Mapping[str, Option]) -> None:
        self._options = options
        self._chosen = dict.fromkeys(options, 0)
        self.max_output_tokens: int | None = None
        """The service's largest output limit in tokens, once an error named it."""

    def snapshot(self) -> dict[str, str]:
        """Return the chosen variant of each option, to build a request and, after an error, to call `adapt`."""
        return {name: option.variants[self._chosen[name]] for name, option in self._options.items()}

    def adapt(self, message: str, sent: Mapping[str, str]) -> bool:
        """Choose the next variants of the options that an error message names.

        Args:
            message: the service's error.
            sent: the snapshot that the request was built from.

        Returns:
            whether the request should be sent again.
        """
        # Parallel requests fail with the same error. If another one has changed the shape since, it is not changed again.
        if sent != self.snapshot():
            return True
        if self._lower_limit(message):
            return True
        changed = False
        for name, option in self._options.items():
            if option.names.search(message) and self._chosen[name] + 1 < len(option.variants):
                self._chosen[name] += 1
                changed = True
        return changed

    def _lower_limit(self, message: str) -> bool:
        named = re.search(r"max_(?:completion_|output_)?tokens|completion tokens|output tokens", message)
        largest = LARGEST_LIMIT.search(message)
        if not named or not largest:
            return False
        limit = int(largest[1])
        if self.max_output_tokens is not None and limit >= self.max_output_tokens:
            return False
        self.max_output_tokens = limit
        return True


def prompt_for(schema: Mapping[str, object]) -> str:
    """Describe the schema in words, for services that cannot enforce it."""
    properties = schema["properties"]
    assert isinstance(properties, Mapping)
    keys = "\n".join(f'- "{name}": {field["description"]}' for name, field in properties.items())
    return f"Answer with one JSON object and nothing else. Its keys, each with a string, are:\n{keys}"
