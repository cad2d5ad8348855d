"""The limits that docs/explanation/security.md promises are those of the code."""

from __future__ import annotations

import pytest

from lora_api.job import MAX_SPEC_BYTES
from lora_operator import metrics_access, poller
from tests.support.quickstart import ROOT

TEXT = " ".join((ROOT / "docs/explanation/security.md").read_text().split())


@pytest.mark.parametrize(
    ("words", "values", "expected"),
    [
        (
            "at most 20 KiB of plain HTTP in three seconds",
            (poller.MAX_HEADER_BYTES + poller.MAX_BODY_BYTES, poller.REQUEST_SECONDS),
            (20 << 10, 3.0),
        ),
        ("A round takes at most 20 seconds", (poller.ROUND_SECONDS,), (20.0,)),
        ("a spec has at most 64 kB", (MAX_SPEC_BYTES,), (64 << 10,)),
        ("An accepted token is remembered for a minute", (metrics_access.CACHE_SECONDS,), (60.0,)),
    ],
)
def test_limits(words: str, values: tuple[float, ...], expected: tuple[float, ...]) -> None:
    assert words in TEXT
    assert values == expected
