"""`lora estimate` compared with the measured memory of the training stage."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from diffusers import UNet2DConditionModel
from typer.testing import CliRunner, Result

from lora_api import API_VERSION, KIND
from lora_cli.estimate import SDXL, estimate
from lora_trainer.train.memory.workloads import text_elements
from tests.conftest import make_spec
from tests.integration.train.conftest import JobMaker

MEASURED = """
import sys
from pathlib import Path
from lora_trainer.__main__ import main
code = main(["train", "--config", sys.argv[1]])
print(Path("/proc/self/status").read_text())
sys.exit(code)
"""
"""A program that runs the training stage and prints its peak memory."""


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def ask(folder: Path, spec: dict[str, Any], *options: str) -> Result:
    file = folder / "job.yaml"
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "statue"}, "spec": spec}
    file.write_text(yaml.safe_dump(body))
    app = typer.Typer()
    app.command()(estimate)
    return CliRunner().invoke(app, [str(file), *options])


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"resolution": 256, "batchSize": 4},
        {"resolution": 192, "batchSize": 4, "textEncoder": {"train": True}, "emaDecay": "0.9"},
        {"resolution": 192, "batchSize": 4, "tokenEmbeddings": {"train": True}},
        {"resolution": 192, "batchSize": 4, "method": "DreamBoothExtract"},
        {"resolution": 192, "batchSize": 4, "method": "DreamBoothExtract", "textEncoder": {"train": True}},
    ],
    ids=["small", "large-batch", "text-encoders", "token-embeddings", "whole-unet", "whole-unet-and-texts"],
)
def test_the_estimate_agrees_with_the_process_within_a_tenth(
    make_job: JobMaker, tiny_sdxl: Path, tmp_path: Path, training: dict[str, Any]
) -> None:
    job = make_job(maxSteps=3, **training)
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, job.config_file()], capture_output=True, text=True, check=True
    )
    measured = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", ran.stdout)[1])  # type: ignore[index]
    result = ask(tmp_path, job.config.spec.to_wire(), "--model", str(tiny_sdxl), "-o", "json")
    assert result.exit_code == 0, result.output
    estimate = json.loads(result.stdout)
    assert sum(estimate["terms"].values()) == estimate["phases"]["training"]
    print(f"estimated {estimate['bytes'] / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB")
    assert estimate["bytes"] == pytest.approx(measured, rel=0.1)


def test_a_job_that_cannot_fit_is_explained(tiny_sdxl: Path, tmp_path: Path) -> None:
    result = ask(tmp_path, make_spec(), "--model", str(tiny_sdxl), "--gpu", "0.5GiB")
    assert result.exit_code == 1
    for words in ("UNet, frozen", "libraries", "does not fit", "0.5GiB has 0.50 GiB", "quantizeBase to NF4"):
        assert words in " ".join(result.stdout.split())
    assert "gradient checkpointing on" in result.stdout


def test_variants_add_up_their_time_and_need_the_memory_of_the_largest(
    tiny_sdxl: Path, tmp_path: Path
) -> None:
    def figures(**training: Any) -> dict[str, Any]:
        result = ask(
            tmp_path, make_spec(training=training), "--model", str(tiny_sdxl), "--gpu", "L4", "-o", "json"
        )
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout))

    variants = [{"name": "small", "maxSteps": 100}, {"name": "large", "rank": 256}]
    together = figures(validation={"everySteps": 50}, variants=variants)
    solo = [figures(maxSteps=100), figures(rank=256)]
    assert together["bytes"] == max(each["bytes"] for each in solo)
    assert together["seconds"] == pytest.approx(sum(each["seconds"] for each in solo), abs=0.2)


def test_without_a_model_the_sizes_are_sdxls() -> None:
    """The numbers are those in the headers of the published weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(SDXL, subfolder="unet"))
    assert sum(weight.numel() for weight in unet.parameters()) == 2_567_463_684
    assert text_elements(SDXL) == 123_060_480 + 694_659_840


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpu", "abacus"], "write its memory as 24GiB or 24GB, cpu, or one of: T4"),
        (["--gpu", "V100"], "no kernels for compute capability 7.0"),
        (
            ["--gpu", "T4", "--set", "training.mixedPrecision=bf16"],
            "the GPU T4 (compute capability 7.5) has no bf16",
        ),
        (["--gpu", "cpu"], "fp16 does not run on a CPU"),
        (["--model", "/nowhere"], "/nowhere is not a model's folder"),
    ],
)
def test_jobs_that_cannot_be_estimated_are_named(tmp_path: Path, options: list[str], words: str) -> None:
    result = ask(tmp_path, make_spec(), *options)
    assert result.exit_code == 64
    assert words in result.stderr


def test_a_recipe_is_estimated_for_the_images_of_a_folder(
    tiny_sdxl: Path, tmp_path: Path, photographs: list[Path]
) -> None:
    spec = make_spec(training={"recipe": "Auto", "resolution": 64, "mixedPrecision": "fp32"}, resources=CPU)
    options = ("--model", str(tiny_sdxl), "--gpu", "cpu")
    folder = str(photographs[0].parent)
    count = len(list(photographs[0].parent.glob("*.jpg")))
    named = ask(tmp_path, spec, *options, "--images", folder)
    assert f"recipe Subject for {count} images sets rank 16" in named.output
    most = ask(tmp_path, spec, *options)
    assert "recipe Subject for 20 images" in most.output
    assert "1500 steps" in most.output
    assert json.loads(ask(tmp_path, spec, *options, "-o", "json").stdout)["fits"]
    refused = ask(tmp_path, make_spec(), *options, "--images", folder)
    assert "--images is for jobs with a recipe" in refused.output


CPU = {"train": {"gpus": 0}}
