"""What `lora estimate` takes for a GPU, and what it gives to programs."""

from __future__ import annotations

import subprocess

import pytest

from lora_cli.errors import UsageError
from lora_cli.estimate import _device, camel
from tests.support.quickstart import LORA, QUICKSTART, environment


@pytest.mark.parametrize(
    ("name", "memory"),
    [("24GiB", 24 * 2**30), ("24Gi", 24 * 2**30), ("24GB", 24 * 10**9), ("0.5 G", 5 * 10**8)],
)
def test_an_amount_has_its_unit(name: str, memory: int) -> None:
    assert _device(name)[:2] == ("cuda", memory)


@pytest.mark.parametrize("name", ["24", "24TB", "RTX 9090", "24gib-"])
def test_an_unknown_gpu_is_refused_with_those_known(name: str) -> None:
    with pytest.raises(UsageError, match="24GiB or 24GB, cpu, or one of: T4"):
        _device(name)


def test_no_gpu_is_assumed_in_silence() -> None:
    ran = subprocess.run(
        [LORA, "estimate", QUICKSTART / "job.yaml", "--set", "resources.train.gpus=1"],
        env=environment(CUDA_VISIBLE_DEVICES=""), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 64
    assert "this machine has no GPU to estimate for: name one with --gpu" in ran.stderr


def test_keys_are_camel_case() -> None:
    assert camel("UNet, frozen") == "unetFrozen"
    assert camel("optimizer states, AdamW8bit") == "optimizerStatesAdamw8bit"
