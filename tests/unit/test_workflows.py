"""The workflows on GitHub: what can be told of them without running them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.release_notes import release_notes
from tools.without_torch import without_torch

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MAY_WRITE = {
    "release.yml": {
        "images": {"packages", "id-token"},
        "release": {"contents", "packages", "id-token", "attestations"},
    },
    "security.yml": {"codeql": {"security-events"}},
    "scorecard.yml": {"scorecard": {"security-events", "id-token"}},
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
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+(/[\w-]+)?@[0-9a-f]{40}", step["uses"])
        for target in re.findall(r"\bmake (?:-s )?([a-z-]+)", step.get("run", "")):
            assert target in targets
        for name in re.findall(r"\b(?:charts|crds)/[\w./-]+", step.get("run", "")):
            assert (ROOT / name).exists(), name
    for job in workflow["jobs"].values():
        assert job.get("uses", "./").startswith("./")
        assert (ROOT / job.get("uses", "./")).exists()
        assert "uses" in job or job["timeout-minutes"] <= 120


BUILDING = [path for path in WORKFLOWS if path.name in ("ci.yml", "release.yml")]


def built(path: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = load(path)["jobs"]["images"]["strategy"]["matrix"]["include"]
    return found


@pytest.mark.parametrize("path", BUILDING, ids=lambda path: path.name)
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
        ["notes", "test"],
        "images",
    )
    assert "workflow_call" in load(ROOT / ".github/workflows/ci.yml")["on"]


CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2027-01-15\n\n### Added\n\n- This.\n\n## [0.1.0]\n\n- That.\n"


def test_a_releases_notes_are_its_section_of_the_changelog() -> None:
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
def test_a_tag_that_is_not_the_version_or_has_no_notes_is_refused(tag: str, version: str, words: str) -> None:
    with pytest.raises(SystemExit, match=words):
        release_notes(tag, version, CHANGELOG)


REQUIREMENTS = sorted(
    [
        *(ROOT / "operator").glob("req*.txt"),
        *(ROOT / "trainer_image").glob("req*.txt"),
        *(ROOT / "tools").glob("req*.txt"),
    ]
)
PIN = re.compile(r"^([\w.-]+)==([\w.+!-]+)", re.MULTILINE)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_every_pin_has_hashes_and_the_version_of_the_constraints(path: Path) -> None:
    constraints = {
        canonical(name): version for name, version in PIN.findall((ROOT / "constraints.txt").read_text())
    }
    blocks = re.split(r"\n(?=\S)", path.read_text())
    assert blocks
    for block in blocks:
        (name, version), *others = PIN.findall(block)
        assert not others
        assert "--hash=sha256:" in block, name
        assert constraints.get(canonical(name), version) == version, f"{name}: run `make pins`"


@pytest.mark.parametrize(
    ("path", "extras"),
    [
        ("operator/requirements.txt", ["operator"]),
        ("trainer_image/requirements-annotate.txt", ["annotate"]),
        ("trainer_image/requirements-train.txt", ["annotate", "train", "local", "demo"]),
        ("tools/requirements-dev.txt", ["annotate", "train", "local", "demo", "docs", "operator", "dev"]),
    ],
)
def test_the_pins_cover_the_extras(path: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {canonical(name) for name, _ in PIN.findall((ROOT / path).read_text())}
    for extra in extras:
        for requirement in project["optional-dependencies"][extra]:
            name = canonical(re.match(r"[\w.-]+", requirement)[0])  # type: ignore[index]
            assert name == project["name"] or name in pinned, f"{name}: run `make pins`"


def test_images_and_ci_install_by_hash_from_one_index() -> None:
    for path in ("operator/Dockerfile", "trainer_image/Dockerfile", "Makefile"):
        text = (ROOT / path).read_text()
        assert "extra-index" not in text.lower().replace("_", "-"), path
        for command in re.findall(r"pip install[^&|;]*?(?:-r |-e )\S+", text.replace("\\\n", " ")):
            assert "--require-hashes" in command or "--no-deps" in command, command
    for path in WORKFLOWS:
        assert "EXTRA_INDEX" not in path.read_text()
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", requirement) for requirement in build)


def test_a_cpu_build_leaves_out_torch_and_cuda_and_nothing_else() -> None:
    text = (ROOT / "trainer_image/requirements-train.txt").read_text()
    before, after = ({name for name, _ in PIN.findall(part)} for part in (text, without_torch(text)))
    assert {"torch", "triton"} <= before - after
    assert all(name.startswith(("torch", "triton", "nvidia-", "cuda-")) for name in before - after)
    assert after


def test_all_images_of_a_release_have_one_base_by_its_digest() -> None:
    jobs = load(ROOT / ".github/workflows/release.yml")["jobs"]
    (resolve,) = [step for step in jobs["notes"]["steps"] if step.get("id") == "base"]
    assert "imagetools inspect python:3.11-slim" in resolve["run"]
    (build,) = [step for step in jobs["images"]["steps"] if step.get("id") == "build"]
    assert build["with"]["build-args"] == "BASE=python:3.11-slim@${{ needs.notes.outputs.base }}"
    assert "image.base.digest=${{ needs.notes.outputs.base }}" in build["with"]["labels"]
    for path in ("operator/Dockerfile", "trainer_image/Dockerfile"):
        text = (ROOT / path).read_text()
        assert "ARG BASE=python:3.11-slim" in text
        bases = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE))
        assert bases == {"${BASE}"}, f"{path} has a base that no digest names"


def test_each_change_and_each_week_is_scanned() -> None:
    workflow = load(ROOT / ".github/workflows/security.yml")
    assert set(workflow["on"]) == {"push", "pull_request", "schedule"}
    [schedule] = workflow["on"]["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", schedule["cron"])
    text = yaml.safe_dump(list(steps(workflow)))
    assert "--vulnerability-service osv" in text
    assert "github/codeql-action/analyze@" in text


def test_what_a_release_publishes_is_signed_and_attested() -> None:
    text = yaml.safe_dump(list(steps(load(ROOT / ".github/workflows/release.yml"))), width=1000)
    for words in ("cosign sign --yes", "cosign sign-blob", "actions/attest-build-provenance@", "SHA256SUMS"):
        assert words in text
    images = [
        step["with"]
        for step in steps(load(ROOT / ".github/workflows/release.yml"))
        if "build-push-action" in step.get("uses", "")
    ]
    assert images
    assert all(image.get("sbom") and image.get("provenance") for image in images)
    assert "cosign sign --yes --key" not in text, "a key that lasts could be stolen"
