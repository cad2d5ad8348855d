"""What README and the tutorial tell people to type: run here, or known to be run by another test."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lora_api.job import parse_job_document
from quickstart import ROOT, SMALL, environment
from served import free_port, wait_for_page

VENV = Path(sys.prefix)
LIFE = "tests/cluster/test_chart_life.py::test_the_life_of_a_release"
CHART = "tests/integration/chart/test_rendering.py::test_helm_finds_nothing_to_warn_of"
CLI = "tests/cluster/test_cli.py::"
ESTIMATE = "tests/integration/train/test_estimate.py::test_the_sizes_that_are_taken_without_a_model_are_sdxls"
END_TO_END = "tests/cluster/test_end_to_end.py::test_pictures_become_an_adapter"
ELSEWHERE = {
    r"make test": ".ci/run",
    r"helm install lora charts/lora-training-operator .*": CHART,
    r"helm test lora .*": LIFE,
    r"make images|kind load docker-image .*": LIFE,
    r"kubectl create secret generic (lora-store|lora-llm) .*": END_TO_END,
    r"kubectl apply -f (examples/quickstart/)?job\.yaml": END_TO_END,
    r"kubectl (get|wait) .*loratrainingjobs?\b.*": END_TO_END,
    r"kubectl port-forward -n lora-system service/lora-lora-training-operator-demo 8501": CHART,
    r"lora validate job\.yaml": CLI + "test_a_job_is_submitted_looked_at_held_and_let_go",
    r"lora estimate job\.yaml --gpu T4": ESTIMATE,
    r"lora (submit job\.yaml|list)": CLI + "test_a_job_is_submitted_looked_at_held_and_let_go",
    r"lora (suspend|resume) marble-statue": CLI + "test_a_job_is_submitted_looked_at_held_and_let_go",
    r"lora watch": CLI + "test_fifty_jobs_are_watched_without_flicker_or_lag",
    r"lora watch marble-statue": CLI + "test_watching_a_job_ends_as_it_does",
    r"lora logs marble-statue -f": CLI + "test_the_log_of_the_newest_pod_is_printed",
    r"lora get marble-statue": CLI + "test_an_adapter_is_fetched_and_verified",
    r"lora demo --home \.demo": "tests/integration/demo/test_pages.py::test_lora_demo_serves_local_runs",
    r"ANTHROPIC_API_KEY=\S+ .venv/bin/lora run job.yaml --images \./photos": (
        "tests/integration/test_local_run.py::test_with_a_key_the_captions_are_the_llms"
    ),
}
"""Commands that need a cluster, a key or an hour, and the test that does what they do."""


def commands(page: str) -> list[str]:
    """The lines of a page's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return [line.partition("   #")[0].strip() for block in blocks for line in block.splitlines() if line]


@pytest.mark.parametrize("page", ["README.md", "docs/command.md", "docs/install.md", "docs/demo.md"])
def test_every_command_is_run_by_a_test(page: str) -> None:
    tutorial = commands("docs/tutorial.md")
    assert commands(page)
    unknown = [
        command
        for command in commands(page)
        if command not in tutorial and not any(re.fullmatch(known, command) for known in ELSEWHERE)
    ]
    assert unknown == []


@pytest.mark.parametrize("test", sorted(set(ELSEWHERE.values())))
def test_those_tests_are_there(test: str) -> None:
    file, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text() if name else (ROOT / file).is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_the_jobs_that_are_shown_are_valid(page: str) -> None:
    shown = re.findall(r"^```yaml\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert shown
    for text in shown:
        parse_job_document(yaml.safe_load(text))


def test_the_tutorial_runs_from_its_first_command_to_its_last(tmp_path: Path) -> None:
    """In a clone whose quickstart has fewer steps."""
    clone = clone_here(tmp_path)
    outputs = {}
    for command in commands("docs/tutorial.md"):
        if any(re.fullmatch(known, command) for known in ELSEWHERE):
            continue
        outputs[command] = serve(clone, command) if " demo " in command else run(clone, command)
    said = outputs["make demo"]
    for word in ("Stored at", "Adapter", "sha256", "Loss", "Report"):
        assert word in said
    assert (clone / ".demo/runs/default/quickstart/result/report.html").is_file()
    assert "phase: Succeeded" in outputs["cat .demo/runs/default/quickstart/status.yaml"]


def clone_here(folder: Path) -> Path:
    """The repository as it stands, with this environment as its .venv."""
    clone = folder / "clone"
    shutil.copytree(ROOT / "examples", clone / "examples")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, clone)
    (clone / ".venv").mkdir()
    for child in VENV.iterdir():
        if child.name != ".installed":
            (clone / ".venv" / child.name).symlink_to(child)
    (clone / ".venv/.installed").touch()
    file = clone / "examples/quickstart/job.yaml"
    job = yaml.safe_load(file.read_text())
    for setting in SMALL:
        path, _, value = setting.partition("=")
        *parents, last = path.split(".")
        place = job["spec"]
        for parent in parents:
            place = place[parent]
        place[last] = int(value)
    file.write_text(yaml.safe_dump(job))
    return clone


def run(clone: Path, command: str) -> str:
    ran = subprocess.run(
        ["sh", "-c", command],  # as a person's shell would
        cwd=clone,
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"
    return ran.stdout


def serve(clone: Path, command: str) -> str:
    """Start a command that serves a page, see that it does, and end it as Ctrl-C does."""
    port = free_port()
    process = subprocess.Popen(
        [*shlex.split(command), "--port", str(port)],
        cwd=clone,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_page(port)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert f"http://127.0.0.1:{port}" in said
    finally:
        process.kill()
    return said
