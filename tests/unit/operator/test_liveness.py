"""When a process should be ended, and when it is not ready yet."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic
from typing import Any, cast

import pytest

from lora_operator.api import Api
from lora_operator.handlers import HEARTBEAT_SECONDS, EventHandlers
from lora_operator.settings import Images, ProfilesFile, Settings
from tests.support.raw_children import raw_job, raw_pod


def handlers() -> EventHandlers:
    nothing = cast(Any, None)
    settings = Settings(images=Images("annotate:1", "train:1"), profiles_file=Path("profiles.yaml"))
    return EventHandlers(settings, cast(ProfilesFile, nothing), cast(Api, nothing))


def test_who_stands_by_is_healthy_and_ready() -> None:
    assert (handlers().liveness_error(), handlers().readiness_error()) == ("", "")


def test_a_controller_that_has_not_moved_for_a_minute_is_sick() -> None:
    async def at_work() -> list[str]:
        found = handlers()
        found._tasks = [asyncio.create_task(asyncio.sleep(60))]
        found._controller.poller.last_heartbeat = monotonic()
        answers = [found.liveness_error()]
        found._controller.poller.last_heartbeat -= HEARTBEAT_SECONDS + 1
        answers.append(found.liveness_error())
        found._tasks[0].cancel()
        return answers

    assert asyncio.run(at_work()) == ["", "no heartbeat for 60 s"]


def test_a_task_that_has_died_is_noticed() -> None:
    async def broken() -> str:
        found = handlers()
        found._tasks = [asyncio.create_task(asyncio.sleep(0))]
        await asyncio.sleep(0.01)
        return found.liveness_error()

    assert asyncio.run(broken()) == "a background task has ended"


def test_it_is_not_ready_while_it_lists_what_there_is() -> None:
    async def listing() -> list[str]:
        found, listed = handlers(), asyncio.Event()
        found._controller.resync_with_retries = listed.wait  # type: ignore[assignment,method-assign]
        preparing = asyncio.create_task(found.prepare())
        await asyncio.sleep(0)
        answers = [found.readiness_error()]
        listed.set()
        await preparing
        return [*answers, found.readiness_error()]

    assert asyncio.run(listing()) == ["listing the existing jobs", ""]


ENDED = [{"name": "stage", "state": {"terminated": {"exitCode": 0}}}]


@pytest.mark.parametrize(
    ("pod", "at_once"),
    [
        (raw_pod(phase="Pending"), False),
        (raw_pod(phase="Running"), False),
        (raw_pod(phase="Running", containerStatuses=ENDED), True),
        (raw_pod(phase="Succeeded"), True),
        (raw_pod(phase="Failed"), True),
    ],
)
def test_a_pod_that_ends_is_reconciled_at_once_and_any_other_one_later(
    pod: dict[str, Any], at_once: bool
) -> None:
    async def queued() -> tuple[int, int]:
        found = handlers()
        found._receive_pod("MODIFIED", pod)
        return len(found._controller.queue), len(found._controller.queue._timers)

    assert asyncio.run(queued()) == ((1, 0) if at_once else (0, 1))


def test_a_pod_that_is_being_deleted_is_reconciled_at_once() -> None:
    async def queued() -> int:
        found, pod = handlers(), raw_pod(phase="Running")
        pod["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
        found._receive_pod("MODIFIED", pod)
        return len(found._controller.queue)

    assert asyncio.run(queued()) == 1


@pytest.mark.parametrize(
    ("condition", "at_once"), [("Complete", False), ("Failed", True), ("Suspended", True)]
)
def test_a_complete_child_job_is_reconciled_later(condition: str, at_once: bool) -> None:
    async def queued() -> tuple[int, int]:
        found = handlers()
        found._receive_child_job(
            "MODIFIED", raw_job(status={"conditions": [{"type": condition, "status": "True"}]})
        )
        return len(found._controller.queue), len(found._controller.queue._timers)

    assert asyncio.run(queued()) == ((1, 0) if at_once else (0, 1))
