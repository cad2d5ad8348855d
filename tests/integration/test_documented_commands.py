"""Every command in the docs runs here, or in the test that is named beside it."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from lora_api.job import parse_job_document
from lora_cli.main import app
from lora_cli.manifests.writer import dump_yaml
from tests.support.demo_server import wait_for_page
from tests.support.helm import VALUE_SETS, render
from tests.support.ports import free_port
from tests.support.quickstart import ROOT, SMALL, environment

VENV = Path(sys.prefix)
LIFE = "tests/cluster/test_chart_life.py::test_the_life_of_a_release"
CHART = "tests/integration/chart/test_rendering.py::test_helm_lint_has_no_warnings"
CLI = "tests/cluster/test_cli.py::"
ESTIMATE = "tests/integration/train/test_estimate.py::test_without_a_model_the_sizes_are_sdxls"
END_TO_END = "tests/cluster/test_end_to_end.py::test_images_become_an_adapter"
REVIEW = "tests/integration/annotate/test_review.py::test_pull_edit_push_approve"
HERE = "tests/integration/test_documented_commands.py"
ELSEWHERE = {
    r"make test|make lint.*": ".ci/run",
    r"\.venv/bin/pytest tests/\S+( -k \w+)?": f"{HERE}::test_documented_tests_exist",
    r"(keys=.*|LORA_TEST_KUBECONFIG=.*)": LIFE,
    r"LORA_TEST_CHAOS_ROUNDS=.*": "tests/cluster/test_chaos.py",
    r"helm install lora charts/lora-training-operator .*": CHART,
    r"helm (test|upgrade|uninstall) lora\b.*": LIFE,
    r"kubectl delete (-f examples/quickstart/job\.yaml|crd .*|namespace lora-system)": LIFE,
    r"make images|kind load docker-image .*": LIFE,
    r"kubectl create secret generic (lora-store|lora-llm|studio-store) (?!.*kubeseal).*": END_TO_END,
    r"kubectl create namespace studio": END_TO_END,
    r"kubectl apply -f (examples/quickstart/)?job\.yaml": END_TO_END,
    r"(uid=\$\()?kubectl (get|wait|describe) loratrainingjobs?\b.*|kubectl (get|wait) .*loratrainingjob/.*": END_TO_END,
    r"kubectl patch loratrainingjob marble-statue .*retry.*": (
        "tests/cluster/test_lifetimes.py::test_a_failed_job_is_retried_in_place"
    ),
    r"kubectl (get|wait|logs) .*-l .*": f"{HERE}::test_documented_labels_exist",
    r"kubectl port-forward -n lora-system service/.*": f"{HERE}::test_documented_services_exist",
    r"kubectl create secret generic lora-webhook .*": "tests/cluster/test_webhook.py::test_the_end_is_announced_once_and_signed",
    r"make demo IMAGES=\./photos TOKEN=CUS CLASS=backpack": f"{HERE}::test_make_demo_trains_on_a_users_folder",
    r"\.venv/bin/lora demo --home \.demo --profiles \S+": (
        "tests/integration/demo/test_new_job.py::test_photographs_become_a_downloaded_adapter"
    ),
    r"(\.venv/bin/)?lora train \./photos --token CUS --class backpack": "tests/integration/test_train_command.py::test_a_folder_becomes_an_adapter",
    r"lora (runs|open photos)": "tests/integration/test_train_command.py::test_a_folder_becomes_an_adapter",
    r"lora push photos OWNER/my-backpack": "tests/integration/test_train_command.py::test_an_adapter_is_pushed_to_the_hub",
    r"lora train \./photos --token CUS --class backpack --print": (
        "tests/unit/cli/test_new_job.py::test_the_manifest_of_a_folder_is_printed_and_valid"
    ),
    r"lora init \./photos --token CUS --class backpack": "tests/unit/cli/test_new_job.py::test_a_file_is_written_once",
    r"lora check job\.yaml --images \./photos": (
        "tests/unit/cli/test_new_job.py::test_the_check_counts_cost_and_missing_keys"
    ),
    r"lora (describe|delete) marble-statue": CLI + "test_a_job_is_described_and_deleted",
    r"lora images check \./photos --sheet sheet\.png": (
        "tests/integration/annotate/test_images_check.py::test_problems_are_named_and_shown"
    ),
    r"lora images check \./photos --masks Model --model clipseg --class backpack --sheet sheet\.png": (
        "tests/integration/annotate/test_images_check.py::test_masks_of_a_model_in_a_folder_are_shown"
    ),
    r"lora validate job\.yaml": CLI + "test_a_job_is_submitted_shown_suspended_and_resumed",
    r"lora estimate job\.yaml --gpu T4": ESTIMATE,
    r"lora (submit job\.yaml|list)": CLI + "test_a_job_is_submitted_shown_suspended_and_resumed",
    r"lora (suspend|resume) marble-statue": CLI + "test_a_job_is_submitted_shown_suspended_and_resumed",
    r"lora watch": CLI + "test_fifty_jobs_are_watched_without_flicker_or_lag",
    r"lora watch marble-statue": CLI + "test_watching_a_job_ends_with_its_exit_code",
    r"lora logs marble-statue -f": CLI + "test_the_log_of_the_newest_pod_is_printed",
    r"lora get (marble-statue|quickstart -n default)|export LORA_STORE_.*": (
        CLI + "test_an_adapter_is_fetched_and_verified"
    ),
    r"lora demo --home \.demo": "tests/integration/demo/test_pages.py::test_lora_demo_serves_local_runs",
    r"(ANTHROPIC_API_KEY=\S+ )?\.venv/bin/lora run job\.yaml --images \./photos|export ANTHROPIC_API_KEY=\S+": (
        "tests/integration/test_local_run.py::test_with_a_key_the_captions_are_the_llms"
    ),
    r"\.venv/bin/lora init \./photos .*": "tests/unit/cli/test_new_job.py::test_a_file_is_written_once",
    r"\.venv/bin/lora check job\.yaml --images \./photos": (
        "tests/unit/cli/test_new_job.py::test_the_check_counts_cost_and_missing_keys"
    ),
    r"\$EDITOR review/metadata.jsonl|lora captions .* review/.*": REVIEW,
    r"python -m lora_trainer prefetch --config prefetch\.json": "tests/integration/test_prefetch.py",
}
"""Commands that need a cluster, a key or much time: a pattern, and the test that does what they do."""
EXTERNAL = {
    r"cosign .*|docker buildx .*|for image in .*cosign copy.*|helm pull oci://.*": "need a published release",
    r"python -c .*stabilityai/stable-diffusion-xl-base-1\.0.*|(export )?AWS_ACCESS_KEY_ID=.*|aws s3 cp .*": "need SDXL's weights and a store",
    r"hf download CIDAS/clipseg-rd64-refined --local-dir clipseg": "needs the weights of CLIPSeg",
    r"kubectl create secret .* kubeseal .*": "needs the sealed-secrets controller",
    r"\.venv/bin/pip install pre-commit|\.venv/bin/pre-commit install": "change the contributor's clone",
    r"kubectl patch customresourcedefinition .*storedVersions.*": "needs a release with the next version of the API",
    r"make bench-gpu.*|PYTHONPATH=\S+ python -m benchmarks\.bench_gpu .*": "need an NVIDIA GPU",
}
"""Commands that no test can run, and why."""
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if re.search("^ *```sh$", path.read_text(), re.MULTILINE)
)
TUTORIAL = "docs/tutorial/quickstart.md"


def commands(page: str) -> list[str]:
    """Return the lines of a page's shell blocks."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    return [" ".join(line.partition("   #")[0].split()) for line in lines if line]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_run_by_a_test(page: str) -> None:
    covered = [*ELSEWHERE, *EXTERNAL]
    tutorial = commands(TUTORIAL)
    unknown = [
        command
        for command in commands(page)
        if command not in tutorial and not any(re.fullmatch(pattern, command) for pattern in covered)
    ]
    assert unknown == []


@pytest.mark.parametrize("pattern", [*ELSEWHERE, *EXTERNAL])
def test_every_pattern_covers_a_documented_command(pattern: str) -> None:
    documented = [command for page in PAGES for command in commands(page)]
    assert any(re.fullmatch(pattern, command) for command in documented)


def test_documented_lora_commands_have_these_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command itself parses the arguments of every `lora` command in the docs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORA_STORE_ENDPOINT", "localhost:9000")
    (tmp_path / "job.yaml").touch()
    for folder in ("photos", "review", "examples"):
        (tmp_path / folder).mkdir()
    shutil.copytree(ROOT / "examples" / "quickstart", tmp_path / "examples/quickstart")
    (tmp_path / "examples/shapes-sdxl").mkdir()
    documented = {
        found[1]
        for page in PAGES
        for command in commands(page)
        if (found := re.search(r"\blora (.*)", command))
    } - {"charts/lora-training-operator"}
    parsed = 0
    for line in documented:
        arguments = shlex.split(line)
        command: Any = typer.main.get_command(app)
        while arguments and arguments[0] in getattr(command, "commands", {}):
            command = command.commands[arguments.pop(0)]
        if not hasattr(command, "commands"):
            command.make_context(line, arguments)
            parsed += 1
    assert parsed > 10


def test_documented_services_exist() -> None:
    """`kubectl port-forward` names a Service and a port of the rendered chart."""
    rendered = render({"demo": {"enabled": True}})
    services = {
        (item["metadata"]["name"], port["port"])
        for item in rendered
        if item["kind"] == "Service"
        for port in item["spec"]["ports"]
    }
    forwarded = [
        (found[1], int(found[2]))
        for page in PAGES
        for command in commands(page)
        if (found := re.fullmatch(r"kubectl port-forward .*service/(\S+) \d+:(\d+)", command))
    ]
    assert forwarded
    assert set(forwarded) <= services


def test_documented_labels_exist() -> None:
    """Label selectors select what the operator and the chart create."""
    selectors = {
        pair
        for page in PAGES
        for command in commands(page)
        for selector in re.findall(r" -l (\S+)", command)
        for pair in selector.split(",")
    }
    assert selectors
    source = "".join(path.read_text() for path in (ROOT / "operator/lora_operator").rglob("*.py"))
    chart = str([item["metadata"].get("labels") for item in render(VALUE_SETS["cached-models"])])
    for key, _, value in (selector.partition("=") for selector in selectors):
        in_chart = f"'{key}': '{value}'" in chart
        assert in_chart or key.rpartition("/")[2] in source, key


def test_documented_tests_exist() -> None:
    named = [
        path for page in PAGES for command in commands(page) for path in re.findall(r"tests/[\w/.]+", command)
    ]
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_index_of_torch_can_be_chosen() -> None:
    """`make TORCH_INDEX=...` installs torch, and torch alone, from that index."""
    printed = subprocess.run(
        ["make", "-n", "-B", ".venv/.installed", "TORCH_INDEX=https://index.test/cpu"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    chosen = [line for line in printed if "https://index.test/cpu" in line]
    assert len(chosen) == 1
    assert re.search(r"--index-url https://index\.test/cpu \$\(grep \^torch== constraints\.txt\)", chosen[0])
    rest = next(index for index, line in enumerate(printed) if "--require-hashes" in line)
    assert printed.index(chosen[0]) < rest


def test_make_help_lists_every_target() -> None:
    # below `make test`, make would also print the folder that it enters
    command = ["make", "--no-print-directory", "help"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    listed = [line.split()[0] for line in printed.splitlines()]
    phony = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert sorted(listed) == sorted(phony[1].split())
    assert {line.index(line.split()[1], len(line.split()[0])) for line in printed.splitlines()} == {19}


@pytest.mark.parametrize("test", sorted(set(ELSEWHERE.values())))
def test_the_named_tests_exist(test: str) -> None:
    file, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text() if name else (ROOT / file).is_file()


@pytest.mark.parametrize("page", ["README.md", TUTORIAL])
def test_the_documented_jobs_are_valid(page: str) -> None:
    shown = re.findall(r"^```yaml\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert shown
    for text in shown:
        parse_job_document(yaml.safe_load(text))


def test_the_tutorial_runs_from_its_first_command_to_its_last(tmp_path: Path) -> None:
    """The tutorial runs in a clone whose quickstart has fewer steps."""
    clone = clone_here(tmp_path)
    outputs = {}
    for command in commands(TUTORIAL):
        if any(re.fullmatch(known, command) for known in ELSEWHERE):
            continue
        outputs[command] = serve(clone, command) if "lora demo" in command else run(clone, command)
    output = next(output for command, output in outputs.items() if command.startswith("make demo"))
    for word in ("Stored at", "Adapter", "sha256", "Loss", "Report"):
        assert word in output
    assert (clone / ".demo/runs/default/quickstart/result/report.html").is_file()
    assert "phase: Succeeded" in outputs["cat .demo/runs/default/quickstart/status.yaml"]


def test_make_demo_trains_on_a_users_folder(tmp_path: Path) -> None:
    clone = clone_here(tmp_path)
    shutil.copytree(ROOT / "examples/quickstart/images", clone / "photos")
    fewer = " ".join(f"--set {setting}" for setting in SMALL)
    command = f"make demo IMAGES=./photos TOKEN=CUS CLASS=ring DEMO_OPTIONS={shlex.quote(fewer)}"
    assert "Report" in run(clone, command)
    assert (clone / ".demo/runs/default/photos/result/adapter.safetensors").is_file()


def clone_here(folder: Path) -> Path:
    """Copy the working tree, with this environment as its .venv."""
    clone = folder / "clone"
    shutil.copytree(ROOT / "examples", clone / "examples")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, clone)
    (clone / "tools").mkdir()
    for path in (ROOT / "tools").glob("requirements-*.txt"):
        shutil.copy2(path, clone / "tools")
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
    file.write_text(dump_yaml(job))
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
    """Start a command that serves a page, request the page, and stop the command by SIGINT."""
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
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert f"http://127.0.0.1:{port}" in output
    finally:
        process.kill()
    return output
