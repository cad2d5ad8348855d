"""Messages of local jobs name processes and commands, in every state that a local stage can have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lora_api.stages import StageName
from lora_api.status import CaptionsStatus, DatasetStatus, JobStatus, Phase, TrainingStatus
from lora_cli.local.messages import dataset_warning, local_message
from lora_cli.local.processes import POD_KIND
from lora_operator.decide import decide
from lora_operator.snapshot import Child, Pod
from lora_trainer.runtime import explain
from tests.support.builders import CAPTIONS_SHA, NOW, child, pod, snapshot

TRAIN = StageName.TRAIN


def process(phase: str = "Running", **fields: object) -> Pod:
    return replace(pod(phase, **fields), kind=POD_KIND)


def message(*children: Child, suspended: bool = False) -> str:
    """Decide about a local job whose captions are ready, and return the message that its user reads."""
    training = TrainingStatus(attempt=1, job_name=children[0].name) if children else None
    status = JobStatus(
        phase=Phase.TRAINING if children else Phase.ANNOTATING,
        captions=CaptionsStatus(sha256=CAPTIONS_SHA, total=6),
        training=training,
    )
    job = snapshot(
        spec={"runPolicy": {"suspend": suspended}}, status=status, children=children, pod_kind=POD_KIND
    )
    return local_message(decide(job, NOW).status)


@pytest.mark.parametrize(
    ("children", "expected"),
    [
        ((), "waiting for the process to start"),
        ((child(TRAIN),), "waiting for the process to start"),
        ((child(TRAIN, process(), deleting=True),), "waiting for the previous process to terminate"),
        ((child(TRAIN, process("Failed", exit_code=69)),), "process statue-pod ended with exit code 69"),
        (
            (child(TRAIN, process("Failed", exit_code=1), failed="BackoffLimitExceeded"),),
            "process statue-pod ended with exit code 1; see its log",
        ),
        (
            (child(TRAIN, process("Failed", exit_code=-9, oom_killed=True), failed="BackoffLimitExceeded"),),
            "process statue-pod ran out of memory",
        ),
        (
            (child(TRAIN, *(process("Failed", exit_code=75, name=f"p-{n}") for n in range(50))),),
            "the process was lost 50 times in a row",
        ),
        ((child(TRAIN, process()),), "attempt 1"),
    ],
)
def test_a_message_names_processes(children: tuple[Child, ...], expected: str) -> None:
    text = message(*children)
    assert expected in text
    assert "pod " not in text.replace("statue-pod", "")


def test_a_suspended_job_names_the_command() -> None:
    assert "process to save a checkpoint" in message(child(TRAIN, process()), suspended=True)
    assert message(suspended=True) == "stopped; run the same command again to resume"


def test_an_unexpected_error_does_not_name_a_pod() -> None:
    result, _ = explain(RuntimeError("x"))
    assert result.message == "RuntimeError: x; the stage's log has the trace"


def test_warnings_about_a_dataset_are_printed_once_with_their_number() -> None:
    first = DatasetStatus(images=5, warnings=1, first_warning="a.jpg: its caption was cut")
    assert dataset_warning(DatasetStatus(images=5)) == ""
    assert dataset_warning(first) == "Warning: a.jpg: its caption was cut"
    assert dataset_warning(first.model_copy(update={"warnings": 3})).endswith("; the report has the other 2")
