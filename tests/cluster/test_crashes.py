"""SIGKILL before and after every write that the operator makes: the same end, and nothing done twice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from kubelet import FakeKubelet
from studio import OperatorProcess, Studio

from lora_api.steps import StepName

PROGRAM = str(Path(__file__).with_name("crashing_operator.py"))
WRITES = 7
"""Of a job from create to Succeeded, the one in which its training pod is seen to run excepted: a fast one never is."""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", range(1, WRITES + 1))
def test_killed_at_a_write(
    studio: Studio, operator_files: OperatorProcess, kubelet: FakeKubelet, number: int, moment: str
) -> None:
    operator_files.start(PROGRAM, str(number), moment)
    process = operator_files.process
    assert process is not None
    try:
        studio.create()
        deadline = time.monotonic() + 60
        while process.poll() is None and studio.phase() != "Succeeded":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)  # the last write is an Event, after the phase can be seen
        assert process.poll() is not None, "count the writes of a job again"
        operator_files.start()
        status = studio.wait_for("Succeeded", seconds=60)
    finally:
        operator_files.stop()
    assert [step for step, _ in kubelet.runs] == [StepName.ANNOTATE, StepName.TRAIN]
    assert max(kubelet.most_live.values()) == 1
    assert (status["training"]["attempt"], status["captions"]["attempt"]) == (1, 1)
    assert len(studio.jobs()) == 2
