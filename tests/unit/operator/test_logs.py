"""The log: one line for each transition, as text or JSON."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest

from lora_api.log_lines import RedactingFormatter
from lora_operator.apply import log_transition
from lora_operator.decide import decide
from lora_operator.logs import TEXT, JsonFormatter
from lora_operator.settings import SettingsError, read_settings
from tests.support.builders import NOW, snapshot


def test_a_transition_is_one_line_and_a_write_without_one_is_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    case = snapshot()
    after = decide(case, NOW).status
    log_transition(case, after)
    log_transition(replace(case, status=after), after.model_copy(update={"input_hash": "x"}))
    (record,) = caplog.records
    line = "studio/statue: Annotating (Annotating): the images are cleaned and captioned"
    assert logging.Formatter(TEXT).format(record).endswith(line)
    fields = json.loads(JsonFormatter().format(record))
    assert (fields["level"], fields["message"]) == ("INFO", line)
    assert fields["job"] == {
        "namespace": "studio",
        "name": "statue",
        "uid": case.uid,
        "from": "",
        "phase": "Annotating",
        "reason": "Annotating",
    }


def test_the_format_is_a_setting() -> None:
    environment = {"LORA_ANNOTATE_IMAGE": "a", "LORA_TRAIN_IMAGE": "t"}
    assert read_settings(environment).log_format == "text"
    assert read_settings(environment | {"LORA_LOG_FORMAT": "json"}).log_format == "json"
    with pytest.raises(SettingsError, match="LORA_LOG_FORMAT must be text or json, not 'xml'"):
        read_settings(environment | {"LORA_LOG_FORMAT": "xml"})


HOSTILE = "because\n2026-01-01 00:00:00,000 INFO x: all is well\r\x1b[2J\u202egnp.\u2028\u009b31m"


@pytest.mark.parametrize("formatter", [RedactingFormatter(TEXT), JsonFormatter()], ids=["text", "json"])
def test_nobody_writes_a_line_of_the_log_of_their_own(formatter: logging.Formatter) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s failed: %s", ("studio/statue", HOSTILE), None)
    line = formatter.format(record)
    assert line.isprintable()
    assert "all is well" in line


def test_a_traceback_with_hostile_text_is_indented() -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), (ValueError, error, None))
    first, *others = RedactingFormatter(TEXT).format(record).split("\n")
    assert first.endswith("ERROR x: failed")
    assert others
    assert all(line.startswith("  ") and line.isprintable() for line in others)
