"""Fixtures: the chart, rendered once for each set of values in values.yaml."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.support.helm import VALUE_SETS, render

Objects = list[dict[str, Any]]


@cache
def rendered_set(name: str) -> Objects:
    return render(VALUE_SETS[name])


@pytest.fixture(params=VALUE_SETS)
def rendered(request: pytest.FixtureRequest) -> Objects:
    """Return the objects of each set of values."""
    return rendered_set(request.param)
