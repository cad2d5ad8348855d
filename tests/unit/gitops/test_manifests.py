"""The GitOps examples build, order the definition before the jobs, and name what exists."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from lora_api.job import parse_spec
from lora_api.profile import Profiles

ROOT = Path(__file__).parents[3]
GITOPS = ROOT / "examples" / "gitops"


def load(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((GITOPS / path).read_text()))


def build(folder: Path) -> dict[str, dict[str, Any]]:
    kubectl = Path(sys.executable).with_name("kubectl")
    ran = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True)
    return {found["kind"]: found for found in yaml.safe_load_all(ran.stdout)}


def test_an_edited_job_has_another_name(tmp_path: Path) -> None:
    shutil.copytree(GITOPS / "jobs", tmp_path / "jobs")
    before = build(tmp_path / "jobs")["LoraTrainingJob"]
    parse_spec(before["spec"])
    assert before["metadata"]["namespace"] == "studio"
    assert before["metadata"]["name"].startswith("marble-statue-")
    assert build(tmp_path / "jobs")["LoraTrainingJob"] == before
    job = tmp_path / "jobs" / "marble-statue.yaml"
    job.write_text(job.read_text().replace("token: CUS", "token: SKS"))
    assert build(tmp_path / "jobs")["LoraTrainingJob"]["metadata"]["name"] != before["metadata"]["name"]


def test_the_operator_comes_before_the_jobs() -> None:
    wave = "argocd.argoproj.io/sync-wave"
    (operator,), (jobs,) = load("argo-cd/operator.yaml"), load("argo-cd/jobs.yaml")
    waves = [int(found["metadata"]["annotations"][wave]) for found in (operator, jobs)]
    assert waves[0] < waves[1]
    assert "SkipDryRunOnMissingResource=true" in jobs["spec"]["syncPolicy"]["syncOptions"]
    _, kustomization = load("flux/operator.yaml")
    (after,) = load("flux/jobs.yaml")
    assert kustomization["spec"]["wait"] is True
    assert after["spec"]["dependsOn"] == [{"name": kustomization["metadata"]["name"]}]


def test_both_install_the_chart_with_profiles_that_it_takes() -> None:
    (application,), (release,) = load("argo-cd/operator.yaml"), load("flux/operator/release.yaml")
    assert (ROOT / application["spec"]["source"]["path"] / "Chart.yaml").exists()
    assert (ROOT / release["spec"]["chart"]["spec"]["chart"] / "Chart.yaml").exists()
    defaults = yaml.safe_load((ROOT / "charts/lora-training-operator/values.yaml").read_text())["profiles"][
        "default"
    ]
    for values in (application["spec"]["source"]["helm"]["valuesObject"], release["spec"]["values"]):
        Profiles.model_validate({"profiles": {"default": defaults | values["profiles"]["default"]}})
