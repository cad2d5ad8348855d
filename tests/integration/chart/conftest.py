"""The chart, rendered once for every value set of values.yaml."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from helm import render

Objects = list[dict[str, Any]]
SETS: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "values.yaml").read_text())


@cache
def rendered_set(name: str) -> Objects:
    return render(SETS[name])


@pytest.fixture(params=SETS)
def rendered(request: pytest.FixtureRequest) -> Objects:
    """The objects of each value set, one after the other."""
    return rendered_set(request.param)
