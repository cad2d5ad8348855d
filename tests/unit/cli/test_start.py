"""The start of the command: what it imports, and what it answers without a cluster or a model."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lora_api import __version__
from lora_cli.exits import Exit
from tests.support.quickstart import LORA, QUICKSTART, ROOT

HEAVY = ("torch", "diffusers", "kubernetes", "aiohttp", "minio", "kopf", "numpy")
IMPORTED = """
import sys
from lora_cli.main import app
try:
    app(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
print(*sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr)
"""


def lora(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LORA, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["validate", str(QUICKSTART / "job.yaml")], ["run", "-h"]])
def test_nothing_heavy_is_imported_before_it_is_needed(arguments: list[str]) -> None:
    script = IMPORTED.format(heavy=HEAVY)
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr.strip()) == (0, "")


def test_the_version_is_printed() -> None:
    assert lora("--version").stdout == f"lora {__version__}\n"


@pytest.mark.parametrize("arguments", [["validate"], ["nonsense"], ["validate", "--nonsense"]])
def test_a_wrong_command_line_exits_with_64(arguments: list[str]) -> None:
    assert lora(*arguments).returncode == Exit.USAGE


def test_validate_warns_of_programs_that_misread_an_adapter() -> None:
    job = str(QUICKSTART / "job.yaml")
    ran = lora("validate", job, "--set", "training.adapter.useDoRA=true")
    assert (ran.returncode, "warning: " in ran.stderr, "spec.training.adapter.useDoRA" in ran.stderr) == (
        0,
        True,
        True,
    )
    for change in ([], ["--set", "training.adapter.useDoRA=true", "--set", "output.formats=[diffusers]"]):
        assert "warning" not in lora("validate", job, *change).stderr


def test_the_documented_exit_codes_are_those_of_the_enum() -> None:
    text = (ROOT / "docs/how-to/command-line.md").read_text()
    for code in Exit:
        assert f"| {int(code)} |" in text, code
