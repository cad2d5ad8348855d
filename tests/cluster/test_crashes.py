"""SIGKILL before and after every write that the operator makes: the same end, and nothing done twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGKILL
from subprocess import Popen

import pytest
from kubelet import FakeKubelet, well
from studio import PATIENCE_SECONDS, OperatorProcess, Studio, until

from lora_api.steps import StepName

PROGRAM = str(Path(__file__).with_name("crashing_operator.py"))
WRITES = 7
"""Of a job from create to Succeeded, the one in which its training pod is seen to run excepted: a fast one never is."""
FIRST = 4
"""Of those that come after a job's first child is told of."""

Crash = Callable[[int, str], Popen[bytes]]


@pytest.fixture
def crash(operator_files: OperatorProcess) -> Iterator[Crash]:
    """Start an operator that is killed at its n-th write, before or after it."""

    def start(number: int, moment: str) -> Popen[bytes]:
        operator_files.start(PROGRAM, str(number), moment)
        assert operator_files.process is not None
        return operator_files.process

    yield start
    operator_files.stop()


def wait_for_the_kill(process: Popen[bytes], *, over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and not over():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)  # the last write is an Event or a deletion, after the phase can be seen
    assert process.poll() == -SIGKILL, "count the writes of a job again"


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", range(1, WRITES + 1))
def test_killed_at_a_write(
    studio: Studio,
    operator_files: OperatorProcess,
    crash: Crash,
    kubelet: FakeKubelet,
    number: int,
    moment: str,
) -> None:
    process = crash(number, moment)
    studio.create()
    wait_for_the_kill(process, over=lambda: studio.phase() == "Succeeded")
    operator_files.start()
    status = studio.wait_for("Succeeded")
    assert [step for step, _ in kubelet.runs] == [StepName.ANNOTATE, StepName.TRAIN]
    assert max(kubelet.most_live.values()) == 1
    assert (status["training"]["attempt"], status["captions"]["attempt"]) == (1, 1)
    assert len(studio.jobs()) == 2


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", range(FIRST, FIRST + 3))
def test_killed_while_a_job_that_has_failed_is_stopped(
    studio: Studio,
    operator_files: OperatorProcess,
    crash: Crash,
    kubelet: FakeKubelet,
    number: int,
    moment: str,
) -> None:
    """The end is written, an Event tells of it, and the child that runs is deleted."""
    kubelet.script = lambda step, number: None
    process = crash(number, moment)
    studio.create(runPolicy={"activeDeadlineSeconds": 2})
    wait_for_the_kill(process, over=lambda: studio.phase() == "Failed" and not studio.jobs())
    operator_files.start()
    studio.wait_for("Failed")
    assert studio.condition("Succeeded") == ("False", "DeadlineExceeded")
    until(lambda: not studio.jobs() and not studio.pods())
    assert len(kubelet.runs) == 1


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", range(FIRST, FIRST + 4))
def test_killed_while_a_job_is_suspended(
    studio: Studio,
    operator_files: OperatorProcess,
    crash: Crash,
    kubelet: FakeKubelet,
    number: int,
    moment: str,
) -> None:
    """The child is deleted, the phase is written and told, and so is that nothing runs any more."""
    kubelet.script = lambda step, number: None
    process = crash(number, moment)
    studio.create()
    until(lambda: kubelet.runs)
    until(lambda: studio.phase() == "Annotating")
    time.sleep(0.3)  # for the Event that tells of it
    studio.patch({"spec": {"runPolicy": {"suspend": True}}})
    wait_for_the_kill(process, over=lambda: "to go on" in studio.message())
    operator_files.start()
    until(lambda: "to go on" in studio.message())
    assert studio.phase() == "Suspended"
    assert not studio.jobs()
    kubelet.script = well
    studio.patch({"spec": {"runPolicy": {"suspend": False}}})
    status = studio.wait_for("Succeeded")
    assert (status["captions"]["attempt"], status["training"]["attempt"]) == (2, 1)
    assert max(kubelet.most_live.values()) == 1
