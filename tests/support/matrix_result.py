"""A pytest plugin that counts the results of the matrix: `pytest -p tests.support.matrix_result`.

A test says what it is by `record_property`, which works in several processes too:

run             trains with a row of settings
refused         sees settings refused
field           sees that another value of a field has an effect; its value is the field
reader          compares a program's reading of an adapter with the trained weights
reader_error    the relative error that it found, for readers that the table calls exact
"""

from __future__ import annotations

from collections import Counter

import pytest

PASSED: Counter[str] = Counter()
FAILED: Counter[str] = Counter()
ERRORS: list[float] = [0.0]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.failed:
        for name, value in report.user_properties:
            if name == "reader_error":
                ERRORS.append(float(value))  # type: ignore[arg-type]
            else:
                (PASSED if report.passed else FAILED)[name] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    failed = FAILED["run"] + FAILED["refused"] + FAILED["reader"]
    terminalreporter.write_line(
        f"RESULT runs={PASSED['run']} refused={PASSED['refused']} failed={failed} "
        f"fields={PASSED['field'] + FAILED['field']} silent={FAILED['field']} "
        f"readers={PASSED['reader']} worst_reader_error={max(ERRORS):.1e}"
    )
