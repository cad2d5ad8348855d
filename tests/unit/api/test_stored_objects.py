"""Jobs as earlier versions stored them (docs/explanation/api-versions.md): every later version reads them.

The files in `stored` are never edited. A new version adds its own.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from lora_api.job import parse_spec
from lora_api.status import JobStatus
from lora_operator.decide import decide
from lora_operator.observe import Resource, read_snapshot
from tests.support.builders import PROFILE

STORED = sorted((Path(__file__).parent / "stored").glob("*.yaml"))
LATER = datetime(2026, 11, 26, 7, 31, tzinfo=UTC)


def is_kept(before: object, after: object) -> bool:
    """Whether everything that was stored is there still. Later versions may add fields."""
    if isinstance(before, dict) and isinstance(after, dict):
        return all(name in after and is_kept(value, after[name]) for name, value in before.items())
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(is_kept, before, after))
    return before == after


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_stored_job_is_read_without_loss(path: Path) -> None:
    stored = yaml.safe_load(path.read_text())
    assert is_kept(stored["spec"], parse_spec(stored["spec"], stored=True).to_wire())
    assert is_kept(stored["status"], JobStatus.model_validate(stored["status"]).to_wire())


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_stored_job_continues_unchanged(path: Path) -> None:
    stored = yaml.safe_load(path.read_text())
    stored["metadata"]["resourceVersion"] = "1"
    snapshot = read_snapshot(Resource.of(stored), (), (), {"default": PROFILE})
    assert not snapshot.spec_error
    assert not snapshot.status_error
    decision = decide(snapshot, LATER)
    assert decision.status.adapter == snapshot.status.adapter
    assert decision.status.captions == snapshot.status.captions
    if snapshot.status.phase.terminal:
        assert decision.status == snapshot.status
        assert not decision.actions
    else:
        # the same attempt, whose child Job is not in this snapshot
        (start,) = decision.actions
        assert start.attempt == stored["status"]["training"]["attempt"]


def test_there_are_stored_jobs() -> None:
    assert len(STORED) >= 2
