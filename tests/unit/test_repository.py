"""What holds for the repository as a whole."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import yaml

from lora_api import __version__

ROOT = Path(__file__).parents[2]


def test_the_folder_operator_does_not_hide_the_standard_librarys_module() -> None:
    """Python finds a package at the root before the standard library, so the folder must not be one."""
    assert not (ROOT / "operator" / "__init__.py").exists()
    script = "import operator; print(operator.add(1, 2))"
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "3\n"


def test_there_is_one_version() -> None:
    chart = yaml.safe_load((ROOT / "charts/lora-training-operator/Chart.yaml").read_text())
    assert version("lora-training-operator") == __version__ == chart["version"] == chart["appVersion"]


def test_the_operator_starts_without_torch() -> None:
    script = "import sys, lora_operator.handlers; print(sorted({'torch', 'diffusers', 'minio'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_the_annotation_step_starts_without_torch() -> None:
    script = "import sys, lora_trainer.annotate.stage; print(sorted({'torch', 'kopf', 'kubernetes'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
