"""Parameters side by side in one tensor, and the pieces that an optimizer gets of it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from lora_api.job import Training
from lora_trainer.train.model import flat_parameters
from lora_trainer.train.model.flat_parameters import FlatParameters
from lora_trainer.train.optimizers import build_optimizer, parameter_groups


def stepped(optimizer_name: str) -> tuple[list[int], torch.Tensor]:
    """Make two steps; returns the sizes of the optimizer's tensors and the values after the steps."""
    generator = torch.Generator().manual_seed(0)
    parameters = {
        f"unet.{name}": Parameter(torch.randn(size, generator=generator))
        for name, size in (("a", 5000), ("b", 9000), ("c", 2500))
    }
    training = Training.model_validate({"optimizer": optimizer_name, "learningRate": "1e-2"})
    groups = [group["params"] for group in parameter_groups(training, parameters)]
    flat = FlatParameters(parameters, groups, torch.float32)
    optimizer = build_optimizer(training, flat.named, flat)
    for _ in range(2):
        flat.gradient.copy_(torch.randn(flat.gradient.shape, generator=generator))
        optimizer.step()
    sizes = [parameter.numel() for group in optimizer.param_groups for parameter in group["params"]]
    return sizes, flat.values.detach().clone()


@pytest.mark.parametrize("optimizer_name", ["AdamW", "AdamW8bit", "Prodigy"])
def test_an_optimizer_gets_pieces_that_its_kernels_can_count(
    optimizer_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_sizes, whole = stepped(optimizer_name)
    monkeypatch.setattr(flat_parameters, "MAX_SEGMENT", 4096)
    sizes, values = stepped(optimizer_name)
    assert whole_sizes == [16500]
    assert sizes == [4096, 4096, 4096, 4096, 116]
    # The last piece is below the size from which bitsandbytes quantizes states.
    quantized = 16384 if optimizer_name == "AdamW8bit" else 16500
    torch.testing.assert_close(values[:quantized], whole[:quantized], rtol=1e-6, atol=1e-7)
    assert flat_parameters.MAX_SEGMENT % 256 == 0
    assert not torch.equal(values, torch.zeros_like(values))


def test_a_segment_stays_below_32_bits() -> None:
    assert flat_parameters.MAX_SEGMENT < 2**31


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_swapped_within_a_block_only(dtype: torch.dtype) -> None:
    parameter = Parameter(torch.zeros(2))
    flat = FlatParameters({"unet.a": parameter}, [[parameter]], dtype)
    flat.gradient.fill_(1)
    for prepare in (flat.use_compute_copy, flat.use_float32):
        prepare()
        replacement = {"unet.a": torch.ones(2)}
        with flat.swapped(replacement):
            assert parameter.tolist() == [1, 1]
        assert parameter.tolist() == [0, 0]
        with pytest.raises(RuntimeError), flat.swapped(replacement):
            raise RuntimeError
        assert parameter.tolist() == [0, 0]
        assert replacement["unet.a"].tolist() == [1, 1]
        assert flat.values.tolist() == [0, 0]
        assert flat.named["unet.a"].grad is not None
        assert flat.named["unet.a"].grad.tolist() == [1, 1]


@pytest.mark.parametrize("name", ["Adafactor", "CAME"])
def test_a_stack_of_matrices_takes_the_steps_of_single_ones(name: str) -> None:
    """All kinds of shapes: matrices, convolutions and vectors, at two learning rates."""
    shapes = {"a": (4, 8), "b": (8, 4), "c": (4, 8), "d": (6,), "e": (3, 4, 3, 3), "f": (4, 8), "g": (6,)}
    generator = torch.Generator().manual_seed(0)
    values = {
        f"{'text_encoder' if key == 'f' else 'unet'}.{key}": torch.randn(shape, generator=generator)
        for key, shape in shapes.items()
    }
    training = Training.model_validate(
        {"optimizer": name, "learningRate": "1e-2", "textEncoder": {"train": True, "learningRate": "1e-3"}}
    )
    single, stacked = ({key: Parameter(value.clone()) for key, value in values.items()} for _ in range(2))
    groups = [group["params"] for group in parameter_groups(training, stacked)]
    flat = FlatParameters(stacked, groups, torch.float32)
    optimizers = build_optimizer(training, single), build_optimizer(training, flat.named, flat)
    assert [len(group["params"]) for group in optimizers[1].param_groups] == [5, 1]
    for step in range(4):
        for number, key in enumerate(values):
            # Gradients of very different sizes: the update of each matrix is clipped by itself.
            gradient = torch.randn(values[key].shape, generator=generator) * 10.0 ** (number - 3 + step)
            single[key].grad = gradient
            flat.named[key].grad.copy_(gradient)
        for optimizer in optimizers:
            optimizer.step()
    for key, before in values.items():
        assert not torch.equal(single[key], before)
        torch.testing.assert_close(stacked[key].detach(), single[key].detach(), rtol=1e-5, atol=1e-7)
