"""Each kind of adapter changes weights as its source says, and its file means the same to a reader."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_api.job import Adapter
from lora_trainer.train.export.adapter_file import ExportError, verify, write_diffusers, write_kohya
from lora_trainer.train.export.kohya import layer_tensors, read_weight, trained_weight
from lora_trainer.train.model.adapter import TEXT_ENCODERS, UNET, adapter_layers, add_adapter, trainable
from lora_trainer.train.overrides.fused import fuse
from tests.unit.train.conftest import SMALL_UNET

RANK, ALPHA = 4, 8
KINDS: dict[str, dict[str, object]] = {
    "LoRA": {},
    "rsLoRA": {"useRSLoRA": True},
    "DoRA": {"useDoRA": True},
    "rsDoRA": {"useDoRA": True, "useRSLoRA": True},
    "LoKr": {"type": "LoKr"},
    "LoKr-4": {"type": "LoKr", "factor": 4},
    "LoHa": {"type": "LoHa"},
}
CASES = [
    *((kind, torch.float32) for kind in KINDS),
    *((kind, torch.bfloat16) for kind in ("DoRA", "LoKr-4", "LoHa")),
]
LEARNT = ("lora_up.weight", "lokr_w1", "hada_w1_a")


def small_text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=20,
        hidden_size=32,
        intermediate_size=32,
        projection_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
    )


@pytest.fixture(scope="module")
def bases() -> dict[str, Any]:
    """Small models by the pipeline's names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = CLIPTextModel(small_text_config()), CLIPTextModelWithProjection(small_text_config())
        return {UNET: SMALL_UNET().eval(), **dict(zip(TEXT_ENCODERS, text, strict=True))}


def adapted(
    bases: dict[str, Any],
    kind: str,
    names: Sequence[str],
    dtype: torch.dtype = torch.float32,
    *,
    rank: int = RANK,
    **more: Any,
) -> dict[str, Any]:
    """Models with an adapter that has learnt something.

    Args:
        more: further fields of `training.adapter`.
    """
    settings = Adapter.model_validate({**KINDS[kind], **more})
    modules = {name: deepcopy(bases[name]).to(dtype) for name in names}
    generator = torch.Generator().manual_seed(0)
    for name, module in modules.items():
        add_adapter(module, name, rank, ALPHA, 0, kind=settings)
        fuse(module)
    for parameter in trainable(modules).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return modules


def learnt(layer: Any, suffix: str) -> Tensor:
    return next(p for name, p in layer.named_parameters() if suffix in name).detach()


def by_definition(layer: Any, kind: str) -> Tensor:
    """The changed weight by the formula of each kind's paper."""
    base = layer.get_base_layer().weight.detach()
    scale = ALPHA / RANK**0.5 if kind.startswith("rs") else ALPHA / RANK
    if kind.startswith("LoKr"):
        w1 = learnt(layer, "lokr_w1")
        whole = [p for name, p in layer.named_parameters() if "lokr_w2." in name]
        w2 = whole[0] if whole else learnt(layer, "lokr_w2_a") @ learnt(layer, "lokr_w2_b")
        rows = [torch.cat([w1[i, j] * w2 for j in range(w1.shape[1])], 1) for i in range(w1.shape[0])]
        return base + scale * torch.cat(rows)
    if kind == "LoHa":
        one = learnt(layer, "hada_w1_a") @ learnt(layer, "hada_w1_b")
        other = learnt(layer, "hada_w2_a") @ learnt(layer, "hada_w2_b")
        return base + scale * one * other
    changed = base + scale * learnt(layer, "lora_B") @ learnt(layer, "lora_A")
    if kind.endswith("DoRA"):
        norms = changed.square().sum(1).sqrt()
        changed = changed * (learnt(layer, "magnitude") / norms)[:, None]
    return changed


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_change_is_that_of_the_source(bases: dict[str, Any], kind: str) -> None:
    encoder = adapted(bases, kind, TEXT_ENCODERS[:1])[TEXT_ENCODERS[0]]
    generator = torch.Generator().manual_seed(1)
    for _, layer in adapter_layers(encoder):
        base, weight = layer.get_base_layer(), by_definition(layer, kind)
        x = torch.randn(3, base.in_features, generator=generator)
        expected = torch.nn.functional.linear(x, weight, base.bias)
        assert (expected - base(x)).norm() > 0.01 * expected.norm()
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(trained_weight(layer), weight, rtol=1e-4, atol=1e-6)
        read = read_weight(base.weight, layer_tensors(layer))
        torch.testing.assert_close(read, weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_an_adapter_begins_as_the_base_model_and_as_the_seed_says(
    bases: dict[str, Any], kind: str, dtype: torch.dtype
) -> None:
    started = []
    for seed in (0, 0, 1):
        encoder = deepcopy(bases["text_encoder"]).to(dtype)
        add_adapter(encoder, "text_encoder", RANK, ALPHA, seed, kind=Adapter.model_validate(KINDS[kind]))
        for _, layer in adapter_layers(encoder):
            base = layer.get_base_layer().weight.float()
            torch.testing.assert_close(trained_weight(layer), base, rtol=1e-5, atol=1e-6)
        parameters = trainable({"text_encoder": encoder})
        assert {p.dtype for p in parameters.values()} == {torch.float32}
        started.append(torch.cat([p.detach().flatten() for p in parameters.values()]))
    assert torch.equal(started[0], started[1])
    assert not torch.equal(started[0], started[2])


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_every_parameter_is_given_a_gradient(bases: dict[str, Any], kind: str, dtype: torch.dtype) -> None:
    unet = adapted(bases, kind, [UNET], dtype)[UNET].train()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        noisy, text = torch.randn(1, 4, 4, 4).to(dtype), torch.randn(1, 7, 48).to(dtype)
        output = unet(noisy, torch.tensor([500]), text).sample
    output.float().square().mean().backward()
    for name, parameter in trainable({UNET: unet}).items():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_a_kohya_file_is_verified_and_a_wrong_one_refused(
    bases: dict[str, Any], tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    modules = adapted(bases, kind, list(bases), dtype)
    path = tmp_path / "adapter-kohya.safetensors"
    write_kohya(path, modules, {})
    verify(path, modules)
    tensors = load_file(path)
    name = next(n for n in tensors if n.startswith("lora_te2_") and n.endswith(LEARNT))
    save_file({**tensors, name: tensors[name] * 1.1}, path)
    with pytest.raises(ExportError, match="text_encoder_2"):
        verify(path, modules)


@pytest.mark.parametrize("rank", [1, 2, 3, 8, 32, 48])
@pytest.mark.parametrize("kind", ["LoRA", "rsLoRA", "rsDoRA"])
def test_files_of_every_rank_are_verified(
    bases: dict[str, Any], tmp_path: Path, kind: str, rank: int
) -> None:
    """rsLoRA has a whole alpha in a kohya file only for ranks that are squares."""
    modules = adapted(bases, kind, list(bases), rank=rank)
    kohya, own = tmp_path / "adapter-kohya.safetensors", tmp_path / "adapter.safetensors"
    write_kohya(kohya, modules, {})
    write_diffusers(own, modules)
    verify(kohya, modules)
    verify(own, modules)


@pytest.mark.parametrize("kind", ["LoRA", "rsLoRA"])
def test_a_kohya_file_with_another_scale_is_refused(bases: dict[str, Any], tmp_path: Path, kind: str) -> None:
    modules = adapted(bases, kind, [UNET], rank=8)
    path = tmp_path / "adapter-kohya.safetensors"
    write_kohya(path, modules, {})
    alphas = {name: 1.0001 * alpha for name, alpha in load_file(path).items() if name.endswith(".alpha")}
    save_file({**load_file(path), **alphas}, path)
    with pytest.raises(ExportError, match="unet"):
        verify(path, modules)


@pytest.mark.parametrize("kind", ["LoRA", "rsLoRA", "DoRA"])
def test_a_diffusers_file_is_verified_and_a_wrong_one_refused(
    bases: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    modules = adapted(bases, kind, list(bases))
    path = tmp_path / "adapter.safetensors"
    write_diffusers(path, modules)
    verify(path, modules)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert metadata["sshs_model_hash"] == hashlib.sha256(path.read_bytes()[8 + length :]).hexdigest()
    tensors = load_file(path)
    last = "magnitude_vector.weight" if kind == "DoRA" else "lora_B.weight"
    name = next(n for n in tensors if n.startswith("unet.") and n.endswith(last))
    save_file({**tensors, name: tensors[name] * 1.1}, path, metadata)
    with pytest.raises(ExportError, match="unet"):
        verify(path, modules)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["LoRA", "rsLoRA", "DoRA", "rsDoRA"])
def test_reading_a_file_back_leaves_the_adapter_as_it_was(
    bases: dict[str, Any], tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    """diffusers rounds the adapter of a text encoder. A file that is read next must not seem to differ from it."""
    modules = adapted(bases, kind, list(bases), dtype)
    before = {name: parameter.detach().clone() for name, parameter in trainable(modules).items()}
    paths = tmp_path / "adapter.safetensors", tmp_path / "adapter-kohya.safetensors"
    write_diffusers(paths[0], modules)
    write_kohya(paths[1], modules, {})
    for path in paths:
        verify(path, modules)
    after = trainable(modules)
    assert {name for name in before if not torch.equal(before[name], after[name])} == set()
