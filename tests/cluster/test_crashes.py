"""SIGKILL before and after every write of the operator: jobs end in the same way, and nothing is done twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGKILL
from subprocess import Popen

import pytest

from lora_api.stages import StageName
from tests.support.cluster.harness import PATIENCE_SECONDS, NamespaceClient, OperatorProcess, until
from tests.support.cluster.kubelet import FakeKubelet, succeed

PROGRAM = str(Path(__file__).parents[1] / "support" / "cluster" / "crashing_operator.py")
WRITES = 6
"""Number of writes for a job that succeeds, without that for the running training pod, which is not always seen to run."""
FIRST = 3
"""Number of the first write after a job's first child is in its status."""

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
    cluster: NamespaceClient,
    operator_files: OperatorProcess,
    crash: Crash,
    kubelet: FakeKubelet,
    number: int,
    moment: str,
) -> None:
    process = crash(number, moment)
    cluster.create()
    wait_for_the_kill(process, over=lambda: cluster.phase() == "Succeeded")
    operator_files.start()
    status = cluster.wait_for("Succeeded")
    assert [stage for stage, _ in kubelet.runs] == [StageName.ANNOTATE, StageName.TRAIN]
    assert max(kubelet.most_live.values()) == 1
    assert (status["training"]["attempt"], status["captions"]["attempt"]) == (1, 1)
    assert len(cluster.jobs()) == 2


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", range(FIRST, FIRST + 3))
def test_killed_while_a_failed_job_is_stopped(
    cluster: NamespaceClient,
    operator_files: OperatorProcess,
    crash: Crash,
    kubelet: FakeKubelet,
    number: int,
    moment: str,
) -> None:
    """The writes are the terminal status, its Event, and the deletion of the running child."""
    kubelet.script = lambda stage, number: None
    process = crash(number, moment)
    cluster.create(runPolicy={"activeDeadlineSeconds": 2})
    wait_for_the_kill(process, over=lambda: cluster.phase() == "Failed" and not cluster.jobs())
    operator_files.start()
    cluster.wait_for("Failed")
    assert cluster.condition("Succeeded") == ("False", "DeadlineExceeded")
    until(lambda: not cluster.jobs() and not cluster.pods())
    assert len(kubelet.runs) == 1


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", range(FIRST, FIRST + 4))
def test_killed_while_a_job_is_suspended(
    cluster: NamespaceClient,
    operator_files: OperatorProcess,
    crash: Crash,
    kubelet: FakeKubelet,
    number: int,
    moment: str,
) -> None:
    """The writes are the deletion of the child, the phase and its Event, and the status once no pod is left."""
    kubelet.script = lambda stage, number: None
    process = crash(number, moment)
    cluster.create()
    until(lambda: kubelet.runs)
    until(lambda: cluster.phase() == "Annotating")
    cluster.patch({"spec": {"runPolicy": {"suspend": True}}})
    wait_for_the_kill(process, over=lambda: "to resume" in cluster.message())
    operator_files.start()
    until(lambda: "to resume" in cluster.message())
    assert cluster.phase() == "Suspended"
    assert not cluster.jobs()
    kubelet.script = succeed
    cluster.patch({"spec": {"runPolicy": {"suspend": False}}})
    status = cluster.wait_for("Succeeded")
    assert (status["captions"]["attempt"], status["training"]["attempt"]) == (2, 1)
    assert max(kubelet.most_live.values()) == 1
