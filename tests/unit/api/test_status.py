"""The status of a job, as it is written to the resource."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from lora_api.status import Failure, JobStatus, Progress


def test_a_time_of_another_zone_is_written_in_utc() -> None:
    failure = Failure.model_validate({"reason": "Preempted", "time": "2026-05-01T12:00:00+02:00"})
    assert failure.to_wire()["time"] == "2026-05-01T10:00:00Z"


def test_a_text_of_any_length_and_content_makes_a_status_that_can_be_written() -> None:
    failure = Failure.model_validate(
        {"reason": "x" * 2_000_000, "message": "a\x1b[2J\u202eb\u009bc\ud800d\ne" + "y" * 1_900_000}
    )
    assert len(failure.reason) == 253
    assert len(failure.message) == 4096
    assert failure.message.endswith("…")
    assert failure.message.startswith("a\ufffd[2J\ufffdb\ufffdc?d\ney")
    assert len(json.dumps(failure.to_wire()).encode()) < 10_000


@pytest.mark.parametrize("number", [10**30, 2**31, -1, 1.5, True, "7", float("inf")])
def test_counts_fit_into_32_bits(number: object) -> None:
    with pytest.raises(ValidationError):
        Progress.model_validate({"step": number})


@pytest.mark.parametrize("effective", [{"annotation": "\ud800"}, {"\ud800": 1}, {"a": [{"b": "\udfff"}]}])
def test_a_text_that_utf8_cannot_encode_makes_a_status_invalid(effective: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="unpaired surrogate"):
        JobStatus.model_validate({"effective": effective})
