"""The docs agree with the code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lora_api.profile import Profiles
from lora_api.reasons import Reason
from tools import command_reference, reference_pages

ROOT = Path(__file__).parents[2]
NOT_SUCCEEDED = {Reason.VALID, Reason.CAPTIONED}
"""Reasons of other conditions than Succeeded."""


def test_every_reason_says_what_to_do() -> None:
    rows = re.findall(
        r"^\| ([A-Z][\w, ]+) \|", (ROOT / "docs/reference/reasons.md").read_text(), re.MULTILINE
    )
    named = {name for row in rows if row != "Reason" for name in row.split(", ")}
    assert named == {str(reason) for reason in Reason} - {str(reason) for reason in NOT_SUCCEEDED}


def test_the_documented_profile_is_valid() -> None:
    found = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/how-to/profiles.md").read_text(), re.DOTALL)
    assert found is not None
    Profiles.model_validate(yaml.safe_load(found[1]))


def test_the_charts_and_the_quickstarts_profiles_are_valid() -> None:
    values = yaml.safe_load((ROOT / "charts/lora-training-operator/values.yaml").read_text())
    Profiles.model_validate({"profiles": values["profiles"]})
    Profiles.model_validate(yaml.safe_load((ROOT / "examples/quickstart/profiles.yaml").read_text()))


@pytest.mark.parametrize(
    ("page", "make"),
    [
        ("reference/commands.md", command_reference.render),
        *reference_pages.PAGES.items(),
    ],
)
def test_the_reference_is_up_to_date(page: str, make: Callable[[], str]) -> None:
    assert (ROOT / "docs" / page).read_text() == make(), "run: make reference"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"])
def test_links_in_the_readme_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text()):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    named = {
        target
        for page in pages
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)
    }
    assert len(named) > 5
    assert named <= targets
