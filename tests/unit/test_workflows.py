"""The workflows on GitHub: what can be told of them without running them."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MAY_WRITE = {
    "release.yml": {"images": {"packages", "id-token"}, "release": {"contents", "packages", "id-token"}}
}


def load(path: Path) -> dict[str, Any]:
    """YAML 1.2's meaning of `on`."""
    text = re.sub(r"^on:", '"on":', path.read_text(), count=1, flags=re.MULTILINE)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job.get("steps", [])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_nobody_has_more_rights_than_its_work_needs(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    found = {
        name: {right for right, level in job["permissions"].items() if level == "write"}
        for name, job in workflow["jobs"].items()
        if "permissions" in job
    }
    assert found == MAY_WRITE.get(path.name, {})
    checkouts = [step for step in steps(workflow) if step.get("uses", "").startswith("actions/checkout@")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_they_call_is_there(path: Path) -> None:
    workflow = load(path)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for step in steps(workflow):
        # a tag can be moved, a commit cannot
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])
        for target in re.findall(r"\bmake (?:-s )?([a-z-]+)", step.get("run", "")):
            assert target in targets
        for name in re.findall(r"\b(?:charts|crds)/[\w./-]+", step.get("run", "")):
            assert (ROOT / name).exists(), name
    for job in workflow["jobs"].values():
        assert job.get("uses", "./").startswith("./")
        assert (ROOT / job.get("uses", "./")).exists()
        assert "uses" in job or job["timeout-minutes"] <= 120


def built(path: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = load(path)["jobs"]["images"]["strategy"]["matrix"]["include"]
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_dockerfiles_have_the_stages_that_are_built(path: Path) -> None:
    for image in built(path):
        assert re.search(rf"^FROM .* AS {image['target']}$", (ROOT / image["file"]).read_text(), re.MULTILINE)


def test_the_images_are_those_that_the_chart_names() -> None:
    values = yaml.safe_load((ROOT / "charts/lora-training-operator/values.yaml").read_text())
    named = {values[key]["repository"].rpartition("/")[2] for key in ("image", "annotateImage", "trainImage")}
    assert {image["image"] for image in built(ROOT / ".github/workflows/release.yml")} == named


def test_nothing_is_published_before_the_tests_are_over() -> None:
    jobs = load(ROOT / ".github/workflows/release.yml")["jobs"]
    assert (jobs["test"]["needs"], jobs["images"]["needs"], jobs["release"]["needs"]) == (
        "notes",
        "test",
        "images",
    )
    assert "workflow_call" in load(ROOT / ".github/workflows/ci.yml")["on"]


CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2027-01-15\n\n### Added\n\n- This.\n\n## [0.1.0]\n\n- That.\n"


@pytest.fixture
def release_notes() -> Callable[[str, str, str], str]:
    found: Callable[[str, str, str], str] = runpy.run_path(str(ROOT / ".ci/release_notes.py"))[
        "release_notes"
    ]
    return found


def test_a_releases_notes_are_its_section_of_the_changelog(
    release_notes: Callable[[str, str, str], str],
) -> None:
    assert release_notes("v0.2.0", "0.2.0", CHANGELOG) == "### Added\n\n- This.\n"
    assert release_notes("v0.1.0", "0.1.0", CHANGELOG) == "- That.\n"


@pytest.mark.parametrize(
    ("tag", "version", "words"),
    [
        ("v0.2.1", "0.2.0", "the tag 'v0.2.1' is not v0.2.0"),
        ("0.2.0", "0.2.0", "is not v0.2.0"),
        ("v0.3.0", "0.3.0", "nothing under '## \\[0.3.0\\]'"),
    ],
)
def test_a_tag_that_is_not_the_version_or_has_no_notes_is_refused(
    release_notes: Callable[[str, str, str], str], tag: str, version: str, words: str
) -> None:
    with pytest.raises(SystemExit, match=words):
        release_notes(tag, version, CHANGELOG)
