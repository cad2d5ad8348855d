"""Being told to stop is what a step ends with, whatever a library makes of the interruption."""

from __future__ import annotations

import os
import signal
from typing import Any, cast

import pytest

from lora_api.stages import TrainConfig
from lora_trainer.errors import BadDataError, InterruptedStageError
from lora_trainer.progress import Reporter
from lora_trainer.train import stage as step


def work_that(body: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_work", lambda config, reporter, interruption: body())
    step.work(cast(TrainConfig, None), cast(Reporter, None))


def stop_and_raise(error: Exception) -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        raise error from None


def test_an_error_made_of_the_interruption_is_the_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InterruptedStageError):
        work_that(lambda: stop_and_raise(RuntimeError("aborted in C++")), monkeypatch)


def test_a_named_failure_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadDataError):
        work_that(lambda: stop_and_raise(BadDataError("bad")), monkeypatch)


def test_an_error_without_an_interruption_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        work_that(fail, monkeypatch)
