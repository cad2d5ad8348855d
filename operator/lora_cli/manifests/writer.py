"""Writer of YAML for kubectl. Text that kubectl would read as a number or a boolean is quoted."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.nodes import ScalarNode

from .reader import resolve_scalar


class _Dumper(yaml.SafeDumper):
    """YAML dumper that quotes text such as `5e-4`, `y` and `08`. PyYAML reads these as text, and would not quote them."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> ScalarNode:
    style = None if isinstance(resolve_scalar(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump_yaml(data: Any, *, ascii_only: bool = False) -> str:
    """Write data as YAML. Keys keep their order.

    Args:
        ascii_only: escape all other characters, so that the text contains nothing that a terminal interprets.
    """
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=not ascii_only)
