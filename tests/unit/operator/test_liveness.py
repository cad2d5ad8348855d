"""When a process should be ended, and when it is not ready yet."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic
from typing import Any, cast

from lora_operator.api import Api
from lora_operator.handlers import TICK_SECONDS, Wiring
from lora_operator.settings import Images, ProfilesFile, Settings


def wiring() -> Wiring:
    nothing = cast(Any, None)
    settings = Settings(images=Images("annotate:1", "train:1"), profiles_file=Path("profiles.yaml"))
    return Wiring(settings, cast(ProfilesFile, nothing), cast(Api, nothing))


def test_who_stands_by_is_healthy_and_ready() -> None:
    assert (wiring().sick(), wiring().unready()) == ("", "")


def test_a_controller_that_has_not_moved_for_a_minute_is_sick() -> None:
    async def at_work() -> list[str]:
        found = wiring()
        found._tasks = [asyncio.create_task(asyncio.sleep(60))]
        found._controller.ticked = monotonic()
        answers = [found.sick()]
        found._controller.ticked -= TICK_SECONDS + 1
        answers.append(found.sick())
        found._tasks[0].cancel()
        return answers

    assert asyncio.run(at_work()) == ["", "nothing has moved for 60 s"]


def test_a_task_that_has_died_is_noticed() -> None:
    async def broken() -> str:
        found = wiring()
        found._tasks = [asyncio.create_task(asyncio.sleep(0))]
        await asyncio.sleep(0.01)
        return found.sick()

    assert asyncio.run(broken()) == "a task has died"


def test_it_is_not_ready_while_it_lists_what_there_is() -> None:
    async def listing() -> list[str]:
        found, listed = wiring(), asyncio.Event()
        found._controller.resync_at_last = listed.wait  # type: ignore[assignment,method-assign]
        preparing = asyncio.create_task(found.prepare())
        await asyncio.sleep(0)
        answers = [found.unready()]
        listed.set()
        await preparing
        return [*answers, found.unready()]

    assert asyncio.run(listing()) == ["still listing what there is", ""]
