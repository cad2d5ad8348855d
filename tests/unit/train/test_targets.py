"""The layers that get an adapter, their ranks and learning learning_rates, and the files that hold them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import Conv2d, Linear, Parameter
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_api.job import Adapter, Training
from lora_trainer.errors import BadConfigurationError
from lora_trainer.train.export.adapter_file import verify, write_diffusers, write_kohya
from lora_trainer.train.export.kohya import read_weight, trained_weight
from lora_trainer.train.model.adapter import TEXT_ENCODERS, UNET, adapter_layers, add_adapter, trainable
from lora_trainer.train.optimizers import parameter_groups
from lora_trainer.train.overrides.fused import fuse
from lora_trainer.train.overrides.memory_efficient import make_memory_efficient
from tests.unit.train.conftest import SMALL_UNET

TEXT = CLIPTextConfig(
    vocab_size=20, hidden_size=32, intermediate_size=48, projection_dim=32, num_hidden_layers=2,
    num_attention_heads=2, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
FULL = {"targets": "Full", "convolutionRank": 2}
KINDS: dict[str, dict[str, Any]] = {
    "attention and feed-forward": {"targets": "AttentionAndFeedForward"},
    "full": FULL,
    "full, rsLoRA": {"targets": "Full", "useRSLoRA": True},
    "full, DoRA": {**FULL, "useDoRA": True},
    "full, LoKr": {**FULL, "type": "LoKr"},
    "full, LoHa": {**FULL, "type": "LoHa"},
    "blocks": {"blocks": [{"block": "mid_block", "rank": 8}, {"block": "down_blocks.0", "rank": 0}]},
}


def adapted(kind: dict[str, Any], fast: bool = False) -> dict[str, Any]:
    """Return models whose adapter is not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = (CLIPTextModel(TEXT), CLIPTextModelWithProjection(TEXT))
        modules = {UNET: SMALL_UNET(), **dict(zip(TEXT_ENCODERS, text, strict=True))}
        for name, module in modules.items():
            add_adapter(module, name, 4, 8, 0, kind=Adapter.model_validate(kind))
            if fast:
                fuse(module)
        if fast:
            make_memory_efficient(modules[UNET])
        for parameter in trainable(modules).values():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    return modules


def layers(modules: dict[str, Any], component: str) -> dict[str, Any]:
    return dict(adapter_layers(modules[component]))


def names(module: Any, chosen: Callable[[str, Any], bool]) -> set[str]:
    return {name for name, layer in module.named_modules() if chosen(name, layer)}


def test_targets_are_the_layers_that_their_names_say() -> None:
    plain = SMALL_UNET()
    attention = names(plain, lambda n, m: isinstance(m, Linear) and (".attn1.to_" in n or ".attn2.to_" in n))
    feed_forward = names(plain, lambda n, m: isinstance(m, Linear) and ".ff.net." in n)
    inside = names(
        plain,
        lambda n, m: (
            isinstance(m, Linear | Conv2d) and n.startswith(("down_blocks", "mid_block", "up_blocks"))
        ),
    )
    assert set(layers(adapted({}), UNET)) == attention
    wider = adapted({"targets": "AttentionAndFeedForward"})
    assert set(layers(wider, UNET)) == attention | feed_forward
    assert feed_forward
    assert set(layers(adapted(FULL), UNET)) == inside
    assert sum(1 for name in inside if "conv" in name) >= 4
    text = {name.rsplit(".", 1)[1] for name in layers(wider, "text_encoder")}
    assert text == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}


def test_convolutions_have_their_rank_and_begin_at_zero() -> None:
    unet = SMALL_UNET()
    before = unet(torch.ones(1, 4, 8, 8), 5, torch.ones(1, 7, 48)).sample
    add_adapter(unet, UNET, 4, 8, 0, kind=Adapter.model_validate(FULL))
    torch.testing.assert_close(unet(torch.ones(1, 4, 8, 8), 5, torch.ones(1, 7, 48)).sample, before)
    for name, layer in adapter_layers(unet):
        base = layer.get_base_layer()
        is_large = isinstance(base, Conv2d) and base.kernel_size == (3, 3)
        assert layer.r["default"] == (2 if is_large else 4), name
        assert layer.scaling["default"] == (4.0 if is_large else 2.0), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_gives_back_what_was_trained(kind: str, tmp_path: Path) -> None:
    modules = adapted(KINDS[kind])
    kohya, diffusers = tmp_path / "adapter-kohya.safetensors", tmp_path / "adapter.safetensors"
    write_kohya(kohya, modules, {})
    plain = KINDS[kind].get("type", "LoRA") == "LoRA"
    if plain:
        write_diffusers(diffusers, modules)
        verify(diffusers, modules)
    verify(kohya, modules)
    # ComfyUI's rules, whichever reader `verify` used.
    changed = 0
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in load_file(kohya).items():
        tensors.setdefault(key.partition(".")[0], {})[key.partition(".")[2]] = value
    for _, layer in adapter_layers(modules[UNET]):
        weight = layer.get_base_layer().weight
        match = [
            each
            for each in tensors.values()
            if _fits(each, weight)
            and torch.allclose(read_weight(weight, each), trained_weight(layer), rtol=1e-3, atol=1e-5)
        ]
        changed += bool(match)
    assert changed == len(layers(modules, UNET))


def _fits(tensors: dict[str, torch.Tensor], weight: torch.Tensor) -> bool:
    try:
        return read_weight(weight, tensors).shape == weight.shape
    except RuntimeError:
        return False


@pytest.mark.parametrize("kind", ["full", "attention and feed-forward", "blocks"])
def test_the_fast_paths_compute_the_same(kind: str) -> None:
    results = []
    for fast in (False, True):
        unet = adapted(KINDS[kind], fast)[UNET].train()
        noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        output = unet(noisy, 5, torch.ones(1, 7, 48)).sample
        output.square().mean().backward()
        gradients = [p.grad for p in trainable({UNET: unet}).values()]
        assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
        results.append([output.detach(), *gradients])
    for plain, quick in zip(*results, strict=True):
        torch.testing.assert_close(quick, plain, rtol=1e-3, atol=1e-5)


def test_blocks_have_their_own_ranks() -> None:
    for name, layer in layers(adapted(KINDS["blocks"]), UNET).items():
        assert not name.startswith("down_blocks.0.")
        assert layer.r["default"] == (8 if name.startswith("mid_block.") else 4), name


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([{"block": "up_blocks.7"}], "no up_blocks.7; its blocks are down_blocks.0"),
        ([{"block": each, "rank": 0} for each in ("down_blocks.0", "mid_block", "up_blocks.1")], "rank 0"),
        ([{"block": "up_blocks.0", "rank": 8}], "up_blocks.0 has no layer that targets Attention adapts"),
        ([{"block": "up_blocks.0", "learningRateScale": "2"}], "set training.adapter.targets to Full"),
        ([{"block": "up_blocks.0", "rank": 0}], "up_blocks.0 has no layer that targets Attention adapts"),
    ],
)
def test_blocks_that_select_nothing_are_refused(blocks: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(BadConfigurationError, match=message):
        add_adapter(SMALL_UNET(), UNET, 4, 4, 0, kind=Adapter.model_validate({"blocks": blocks}))


def test_learning_rates_by_matrix_and_block() -> None:
    blocks = [{"block": "mid_block", "learningRateScale": "0.5"}]
    training = Training.model_validate(
        {
            "learningRate": "1e-3",
            "loraPlusRatio": "16",
            "adapter": {"blocks": blocks},
            "textEncoder": {"learningRate": "1e-5"},
        }
    )
    parameters = {
        f"{prefix}.lora_{matrix}.default.weight": Parameter(torch.zeros(1))
        for prefix in ("unet.mid_block.q", "unet.up_blocks.1.q", "text_encoder.q")
        for matrix in "AB"
    }
    learning_rates = {
        name: group["lr"]
        for group in parameter_groups(training, parameters)
        for name, parameter in parameters.items()
        if any(parameter is each for each in group["params"])
    }
    assert [learning_rates[name] for name in parameters] == pytest.approx(
        [5e-4, 8e-3, 1e-3, 16e-3, 1e-5, 16e-5]
    )
    assert parameter_groups(training, parameters)[0]["lr"] == 1e-3
    defaults = parameter_groups(Training(), deepcopy(parameters))
    assert [len(group["params"]) for group in defaults] == [4, 2]
