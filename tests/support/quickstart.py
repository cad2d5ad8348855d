"""Run the quickstart with `lora run`, in a few steps of a small model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples" / "quickstart"
LORA = str(Path(sys.executable).with_name("lora"))
SMALL = [
    "training.maxSteps=6",
    "training.resolution=64",
    "training.checkpoint.everySteps=2",
    "training.preview.numInferenceSteps=2",
]


def write_tiny_model(folder: Path) -> Path:
    """Write a small SDXL pipeline with random weights."""
    subprocess.run(
        [sys.executable, "-m", "lora_trainer", "tiny-sdxl", folder], check=True, capture_output=True
    )
    return folder


def command(
    home: Path, model: Path, *settings: str, job: Path = QUICKSTART / "job.yaml", endpoint: str = ""
) -> list[str]:
    arguments = [str(job), "--profiles", str(QUICKSTART / "profiles.yaml")]
    arguments += ["--images", str(QUICKSTART / "images"), "--put", f"{model}:models/shapes-sdxl"]
    arguments += ["--home", str(home), *(["--endpoint", endpoint] if endpoint else [])]
    for setting in [*SMALL, *settings]:
        arguments += ["--set", setting]
    return [LORA, "run", *arguments]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC")}
    return kept | {"OMP_NUM_THREADS": "1"} | more


def lora_run(
    home: Path,
    model: Path,
    *settings: str,
    job: Path = QUICKSTART / "job.yaml",
    endpoint: str = "",
    **more: str,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(home, model, *settings, job=job, endpoint=endpoint),
        check=False,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=300,
    )


def status_of(home: Path, name: str = "quickstart") -> dict[str, Any]:
    file = home / "runs/default" / name / "status.yaml"
    status: dict[str, Any] = yaml.safe_load(file.read_text())["status"]
    return status


def result_of(home: Path) -> Path:
    return home / "runs/default/quickstart/result"
