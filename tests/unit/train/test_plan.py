"""The memory plan, against the peak of a real step."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lora_api.job import GradientCheckpointing, QuantizeBase, Training
from lora_api.reasons import Reason
from lora_trainer.errors import BadConfigurationError
from lora_trainer.train.data.encode import TextEmbedding, encode_text
from lora_trainer.train.memory.plan import Machine, free_memory, make_plan, memory_advice
from lora_trainer.train.memory.workloads import StepShape, trace_step
from lora_trainer.train.model.adapter import TEXT_ENCODERS, UNET, add_adapter, trainable
from lora_trainer.train.model.base_model import BaseModel
from lora_trainer.train.model.tiny import write_tiny_sdxl
from lora_trainer.train.model.token_embeddings import TokenEmbeddings
from lora_trainer.train.overrides.fused import fuse
from lora_trainer.train.overrides.memory_efficient import make_memory_efficient
from lora_trainer.units import GIB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_tiny_sdxl(path)
    return path


class Live(TorchDispatchMode):
    """The most bytes that storages of real tensors hold at once, by their addresses."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in known | set(
                self._sizes
            ):
                storage = leaf.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                self._sizes[key] = size
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, key)
        return result

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointing"])
def test_the_traced_peak_is_that_of_a_real_step(folder: Path, checkpointing: bool) -> None:
    shape = StepShape(4, 64, 2, torch.float32, checkpointing)
    traced = [trace_step(folder, shape, folder / "traces") for _ in range(2)]
    assert traced[0] == traced[1]  # measured, and read back
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").train()
    frozen = sum(p.numel() for p in unet.parameters())
    add_adapter(unet, UNET, rank=4, alpha=4, seed=0)
    fuse(unet)
    make_memory_efficient(unet)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    for parameter in trainable({UNET: unet}).values():
        parameter.grad = torch.zeros_like(parameter)
    live = Live()
    inputs = torch.randn(2, 4, 8, 8), torch.zeros(2, dtype=torch.long), torch.randn(2, 77, 64)
    added = {"text_embeds": torch.randn(2, 32), "time_ids": torch.zeros(2, 6)}
    with live:
        unet(*inputs, added_cond_kwargs=added).sample.float().square().mean().backward()
    assert traced[0].frozen == frozen
    assert traced[0].trained == sum(p.numel() for p in trainable({UNET: unet}).values())
    assert live.peak <= traced[0].trace.peak <= 1.1 * live.peak


def pass_with(unet: UNet2DConditionModel, texts: list[TextEmbedding]) -> None:
    """Make a forward and backward pass of two samples."""
    added = {"text_embeds": torch.stack([text.pooled for text in texts]), "time_ids": torch.zeros(2, 6)}
    sequences = torch.stack([text.sequence for text in texts])
    inputs = torch.randn(2, 4, 8, 8), torch.zeros(2, dtype=torch.long), sequences
    unet(*inputs, added_cond_kwargs=added).sample.float().square().mean().backward()


def test_the_traced_peak_of_token_embeddings_includes_the_text_encoders(folder: Path) -> None:
    training = Training.model_validate({"tokenEmbeddings": {"train": True, "tokens": 3}, "rank": 4})
    shape = StepShape(4, 64, 2, torch.float32, False, new_tokens=3)
    traced, plain = (
        trace_step(folder, each, folder / "traces") for each in (shape, replace(shape, new_tokens=0))
    )
    base = BaseModel(folder, "tiny")
    unet = base.unet(torch.float32).train()
    tokens = TokenEmbeddings.add(base.text_encoders(torch.float32), training, "CUS")
    add_adapter(unet, UNET, rank=4, alpha=4, seed=0)
    fuse(unet)
    for module in (unet, *(model.encoder for model in tokens.models)):
        make_memory_efficient(module)
    parameters = {**trainable({UNET: unet}), **tokens.parameters()}
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    live = Live()
    with live:
        texts = [tokens.encode("a photo of CUS statue") for _ in range(2)]
        pass_with(unet, texts)
    assert traced.frozen == plain.frozen
    assert traced.trained == plain.trained + 3 * 2 * 32 == sum(p.numel() for p in parameters.values())
    # The batch itself, which this test holds, is not part of a pass.
    assert 0.98 * live.peak <= traced.trace.peak <= 1.15 * live.peak
    assert traced.trace.peak > plain.trace.peak
    plan = make_plan(training, folder, machine(folder, 24 * GIB), torch.bfloat16)
    assert plan.terms["text encoders, frozen"] > 0


def test_the_traced_peak_of_trained_text_encoders_is_that_of_a_real_step(folder: Path) -> None:
    shape = StepShape(4, 64, 2, torch.float32, False, text_rank=4)
    traced, plain = (
        trace_step(folder, each, folder / "traces") for each in (shape, replace(shape, text_rank=0))
    )
    base = BaseModel(folder, "tiny")
    models = base.text_encoders(torch.float32)
    modules = {UNET: base.unet(torch.float32).train()}
    modules |= {name: model.encoder for name, model in zip(TEXT_ENCODERS, models, strict=True)}
    for name, module in modules.items():
        add_adapter(module, name, rank=4, alpha=4, seed=0)
        fuse(module)
        make_memory_efficient(module)
    parameters = trainable(modules)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    live = Live()
    with live:
        texts = [encode_text(models, "a photo of CUS statue") for _ in range(2)]
        pass_with(modules[UNET], texts)
    assert traced.frozen == plain.frozen
    assert traced.trained == sum(p.numel() for p in parameters.values()) > plain.trained
    assert 0.98 * live.peak <= traced.trace.peak <= 1.15 * live.peak
    assert traced.trace.peak > plain.trace.peak


def machine(folder: Path, free: float) -> Machine:
    return Machine("cuda", int(free), folder / "traces")


def test_auto_takes_the_fastest_plan_that_fits(folder: Path) -> None:
    training = Training(resolution=512, batch_size=4)

    def choose(free: float) -> bool:
        return make_plan(training, folder, machine(folder, free), torch.bfloat16).checkpointing

    assert not choose(24 * GIB)
    roomy = make_plan(training, folder, machine(folder, 24 * GIB), torch.bfloat16)
    assert not choose(roomy.peak / 0.92 + 1e6)
    assert choose(roomy.peak / 0.92 - 1e6)


def test_what_cannot_fit_is_refused_with_the_sum(folder: Path) -> None:
    training = Training(gradient_checkpointing=GradientCheckpointing.NEVER, resolution=512)
    with pytest.raises(BadConfigurationError, match=r"peak +0\.\d\d GiB of 0\.10 GiB free") as caught:
        make_plan(training, folder, machine(folder, GIB / 10), torch.bfloat16)
    assert caught.value.reason == Reason.OUT_OF_MEMORY


def test_fewer_bits_make_a_smaller_base(folder: Path) -> None:
    def base(quantize: QuantizeBase) -> int:
        plan = make_plan(Training(quantize_base=quantize), folder, machine(folder, 24 * GIB), torch.bfloat16)
        return plan.terms["UNet, frozen"]

    assert base(QuantizeBase.NF4) < 0.6 * base(QuantizeBase.INT8) < 0.4 * base(QuantizeBase.NONE)


def test_free_memory_is_that_of_this_machine() -> None:
    assert 0 < free_memory(torch.device("cpu")) < 2**50


@pytest.mark.parametrize(
    ("training", "named", "left_out"),
    [
        ({}, ["quantizeBase to NF4"], ["gradientCheckpointing", "batchSize", "mixedPrecision"]),
        ({"gradientCheckpointing": "Never"}, ["gradientCheckpointing to Auto"], []),
        ({"quantizeBase": "NF4"}, ["resolution"], ["quantizeBase"]),
        ({"quantizeBase": "Int8"}, ["quantizeBase to NF4"], []),
        ({"adapter": {"useDoRA": True}}, ["rank"], ["quantizeBase"]),
        ({"method": "DreamBoothExtract", "batchSize": 2}, ["batchSize"], ["quantizeBase"]),
        ({"mixedPrecision": "fp32"}, ["mixedPrecision to bf16"], []),
    ],
)
def test_advice_names_only_what_the_job_can_still_change(
    training: dict[str, Any], named: list[str], left_out: list[str]
) -> None:
    advice = memory_advice(Training.model_validate(training))
    assert all(word in advice for word in named)
    assert not any(word in advice for word in left_out)
