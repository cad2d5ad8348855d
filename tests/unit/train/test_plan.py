"""The memory plan, against what a real step keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from lora_api.job import GradientCheckpointing, QuantizeBase, Training
from lora_api.reasons import Reason
from lora_trainer.errors import BadConfigurationError
from lora_trainer.train.adapter import UNET, add_adapter, trainable
from lora_trainer.train.footprint import Shape, footprint
from lora_trainer.train.lean import make_lean
from lora_trainer.train.plan import GIB, Machine, free_memory, make_plan
from lora_trainer.train.tiny import write_tiny_sdxl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_tiny_sdxl(path)
    return path


def really_kept(unet: UNet2DConditionModel, side: int) -> int:
    """Bytes of every storage that the autograd graph of one forward pass holds, but the weights."""
    own = {p.data_ptr() for p in unet.parameters()}
    kept: dict[int, int] = {}
    graph = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        graph.append(tensor)  # so that no address is used twice
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(
            torch.randn(2, 4, side, side),
            torch.zeros(2, dtype=torch.long),
            torch.randn(2, 77, 64),
            added_cond_kwargs={"text_embeds": torch.randn(2, 32), "time_ids": torch.zeros(2, 6)},
        )
    return sum(size for pointer, size in kept.items() if pointer not in own)


def test_the_count_is_what_a_real_step_keeps(folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").train()
    frozen = sum(p.numel() for p in unet.parameters())
    add_adapter(unet, UNET, rank=4, alpha=4, seed=0)
    make_lean(unet)
    cache = folder / "footprints"
    sizes = [
        footprint(folder, Shape(4, 64, 2, torch.float32, checkpointing), cache)
        for checkpointing in (False, True, True)
    ]
    assert sizes[1] == sizes[2]  # measured, and read back
    assert len(list(cache.iterdir())) == 2
    assert {size.frozen for size in sizes} == {frozen}
    assert {size.trained for size in sizes} == {sum(p.numel() for p in trainable({UNET: unet}).values())}
    plain, checkpointed, _ = (size.activations for size in sizes)
    assert plain == pytest.approx(really_kept(unet, 8), rel=0.01)
    unet.enable_gradient_checkpointing()
    assert really_kept(unet, 8) < checkpointed < plain / 2


def machine(folder: Path, free: float) -> Machine:
    return Machine("cuda", int(free), folder / "footprints")


def test_auto_takes_the_fastest_plan_that_fits(folder: Path) -> None:
    training = Training(resolution=512, batch_size=4)

    def choose(free: float) -> bool:
        return make_plan(training, folder, machine(folder, free), torch.bfloat16).checkpointing

    assert not choose(24 * GIB)
    roomy = make_plan(training, folder, machine(folder, 24 * GIB), torch.bfloat16)
    assert not choose(roomy.total / 0.92 + 1e6)
    assert choose(roomy.total / 0.92 - 1e6)


def test_what_cannot_fit_is_refused_with_the_sum(folder: Path) -> None:
    training = Training(gradient_checkpointing=GradientCheckpointing.NEVER, resolution=512)
    with pytest.raises(BadConfigurationError, match=r"in all +0\.\d\d GiB of 0\.10 GiB free") as caught:
        make_plan(training, folder, machine(folder, GIB / 10), torch.bfloat16)
    assert caught.value.reason == Reason.OUT_OF_MEMORY


def test_fewer_bits_make_a_smaller_base(folder: Path) -> None:
    def base(quantize: QuantizeBase) -> int:
        plan = make_plan(Training(quantize_base=quantize), folder, machine(folder, 24 * GIB), torch.bfloat16)
        return plan.terms["UNet, frozen"]

    assert base(QuantizeBase.NF4) < 0.6 * base(QuantizeBase.INT8) < 0.4 * base(QuantizeBase.NONE)


def test_free_memory_is_that_of_this_machine() -> None:
    assert 0 < free_memory(torch.device("cpu")) < 2**50
