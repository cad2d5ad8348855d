"""Text from clusters, files and services as it reaches a terminal."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from unittest.mock import Mock

import pytest
from rich.console import Console

from lora_cli import console
from lora_cli.cluster.client import api_errors
from lora_cli.cluster.table import job_table

HOSTILE = [
    "\x1b[2J\x1b]8;;http://evil\x07click\x1b]8;;\x07",
    "\u202egnp.exe",
    "\u009b31m",
    "\x07\x08\r",
    "\u2066\u2069\u200e\ufeff",
    "\u2028\u2029",
    "\ud800",
]
MARKUP = "[/x] [link=http://evil]text[/link] :smile:"


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_terminal_would_act_on_is_replaced(text: str) -> None:
    cleaned = console.clean(text)
    assert all(c.isprintable() for c in cleaned)


def test_ordinary_text_is_kept() -> None:
    text = "Grüße, 你好, می‌خواهم 👩‍💻 100 %"
    assert console.clean(text) == text
    assert console.clean("a\nb", lines=True) == "a\nb"
    assert console.clean("a\nb") == "a b"


@pytest.mark.parametrize("text", [*HOSTILE, MARKUP])
def test_a_table_shows_hostile_text_as_text(text: str) -> None:
    status = {
        "phase": "Failed",
        "progress": {"totalSteps": 2, "step": 1, "display": text[:40], "loss": "0.1"},
        "conditions": [
            {"type": "Succeeded", "status": "False", "reason": "Diverged", "message": text,
             "lastTransitionTime": "2026-01-01T00:00:00Z"}
        ],
    }  # fmt: skip
    metadata = {"namespace": "studio", "name": "statue", "creationTimestamp": "2026-01-01T00:00:00Z"}
    screen = Console(width=400, force_terminal=False, markup=False, emoji=False)
    with screen.capture() as captured:
        screen.print(job_table([{"metadata": metadata, "status": status}], False, datetime.now(UTC)))
    printed = captured.get()
    assert all(c.isprintable() or c == "\n" for c in printed)
    if text == MARKUP:
        assert MARKUP in printed


def test_one_unreadable_status_does_not_hide_the_other_jobs() -> None:
    jobs = [
        {
            "metadata": {"namespace": "a", "name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": status,
        }
        for name, status in (("broken", {"phase": 7, "progress": "x"}), ("whole", {"phase": "Training"}))
    ]
    screen = Console(width=400, force_terminal=False)
    with screen.capture() as captured:
        screen.print(job_table(jobs, False, datetime.now(UTC)))
    assert "StatusUnreadable" in captured.get()
    assert "whole" in captured.get()


@pytest.mark.parametrize("text", [*HOSTILE, MARKUP])
def test_results_errors_and_data_are_safe(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    console.say(text)
    console.label("name", text)
    console.warn(text)
    console.print_error(text)
    console.write({"text": text.replace("\ud800", "")}, console.Format.JSON)
    console.write({"text": text.replace("\ud800", "")}, console.Format.YAML)
    printed = "".join(capfd.readouterr())
    assert all(c.isprintable() or c == "\n" for c in printed)


@pytest.mark.parametrize("terminal", ["", "1"])
def test_markup_is_printed_as_text(
    terminal: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", terminal)
    monkeypatch.setenv("TERM", "dumb")
    assert console.out().is_terminal == bool(terminal)
    for stream in (console.out(), console.err()):
        stream.print(MARKUP, soft_wrap=True)
    printed = capfd.readouterr()
    assert printed.out.strip() == printed.err.strip() == MARKUP


def test_lines_are_not_wrapped_in_a_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    console.say("word " * 200)
    console.write({"text": "word " * 200}, console.Format.JSON)
    lines = capfd.readouterr().out.splitlines()
    assert len(lines[0]) == 1000
    assert json.loads("".join(lines[1:]))


def test_a_closed_pipe_is_not_reported_as_an_unreachable_api_server() -> None:
    with pytest.raises(BrokenPipeError), api_errors(Mock(host="https://cluster.example.com")):
        raise BrokenPipeError(32, "Broken pipe")
