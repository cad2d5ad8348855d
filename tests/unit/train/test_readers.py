"""What lycoris_lora, diffusers, ComfyUI and AUTOMATIC1111 make of each kind of adapter, against what was trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file
from torch import Tensor

from lora_trainer.train.export.adapter_file import write_diffusers, write_kohya
from lora_trainer.train.export.kohya import kohya_name, trained_weight
from lora_trainer.train.model.adapter import UNET, adapter_layers
from tests.support import readers
from tests.unit.train.test_adapter_kinds import KINDS, adapted, bases

__all__ = ["bases"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

EXACT = 1e-4
"""Largest relative difference between the change that a reader reads and the trained one."""
TABLE = Path("docs/reference/adapter-files.md")
Reader = Callable[[Any, dict[str, Tensor]], Tensor]
READERS: dict[str, Reader] = {
    "LyCORIS": readers.lycoris,
    "ComfyUI": lambda layer, tensors: readers.comfyui(layer.weight, tensors),
    "AUTOMATIC1111": lambda layer, tensors: readers.automatic1111(layer.weight, tensors),
}
INEXACT = {("ComfyUI", "DoRA"), ("AUTOMATIC1111", "DoRA")}
"""Readers and kinds for which the kohya file is not read exactly."""
IN_DIFFUSERS = {"LoRA": "exact", "DoRA": "wrong", "LoKr": "refused", "LoHa": "refused"}
"""How diffusers reads the kohya file. It drops DoRA's scale, and reads DoRA from its own file."""


def layers_of(modules: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(component, item) for component, module in modules.items() for item in adapter_layers(module)]


@torch.no_grad()
def error_of(reader: Reader, modules: dict[str, Any], path: Path) -> float:
    """The largest error of a layer's change, relative to the change."""
    tensors, worst = load_file(path), 0.0
    for component, (name, layer) in layers_of(modules):
        base = layer.get_base_layer()
        prefix = kohya_name(component, name, modules[UNET].config.layers_per_block) + "."
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        trained = trained_weight(layer)
        read = reader(base, own)
        worst = max(worst, float((read - trained).norm() / (trained - base.weight).norm()))
    return worst


def kind_of(kind: str) -> str:
    return "DoRA" if "DoRA" in kind else re.sub(r"-\d", "", kind).removeprefix("rs")


RANKS: dict[str, Any] = {"convolutionRank": 1, "blocks": [{"block": "mid_block", "rank": 3}]}
"""Ranks that differ between layers. rsLoRA refuses them."""


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_programs_read_the_kohya_file_as_the_table_says(
    bases: dict[str, Any], tmp_path: Path, record_property: Any, kind: str, reader: str
) -> None:
    record_property("reader", 1)
    ranks = {} if kind.startswith("rs") else RANKS
    modules = adapted(bases, kind, list(bases), targets="Full", **ranks)
    path = tmp_path / "adapter-kohya.safetensors"
    write_kohya(path, modules, {})
    error = error_of(READERS[reader], modules, path)
    if (reader, kind_of(kind)) in INEXACT:
        assert error > 0.01  # the table and the warning can go
    else:
        record_property("reader_error", error)
        assert error < EXACT


def error_in_diffusers(base: Any, modules: dict[str, Any], path: Path) -> float:
    """The largest error of a layer's change, relative to the change, as diffusers reads a file."""
    state, alphas, metadata = StableDiffusionXLPipeline.lora_state_dict(
        path.parent, weight_name=path.name, unet_config=modules[UNET].config, return_lora_metadata=True
    )
    fresh = deepcopy(base)
    StableDiffusionXLPipeline.load_lora_into_unet(
        state, unet=fresh, network_alphas=alphas, metadata=metadata, adapter_name="default"
    )
    trained, read = dict(adapter_layers(modules[UNET])), dict(adapter_layers(fresh))
    assert read.keys() == trained.keys()
    errors = []
    for name, layer in read.items():
        expected, weight = trained_weight(trained[name]), layer.get_base_layer().weight
        errors.append(float((trained_weight(layer) - expected).norm() / (expected - weight).norm()))
    return max(errors)


@pytest.mark.parametrize("kind", ["LoRA", "rsLoRA", "DoRA", "rsDoRA"])
@torch.no_grad()
def test_diffusers_reads_its_own_file(
    bases: dict[str, Any], tmp_path: Path, record_property: Any, kind: str
) -> None:
    record_property("reader", 1)
    modules = adapted(bases, kind, [UNET])
    path = tmp_path / "adapter.safetensors"
    write_diffusers(path, modules)
    error = error_in_diffusers(bases[UNET], modules, path)
    record_property("reader_error", error)
    assert error < EXACT


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_diffusers_reads_refuses_or_misreads_the_kohya_file_as_the_table_says(
    bases: dict[str, Any], tmp_path: Path, record_property: Any, kind: str
) -> None:
    record_property("reader", 1)
    modules = adapted(bases, kind, [UNET])
    path = tmp_path / "adapter-kohya.safetensors"
    write_kohya(path, modules, {})
    match IN_DIFFUSERS[kind_of(kind)]:
        case "exact":
            error = error_in_diffusers(bases[UNET], modules, path)
            record_property("reader_error", error)
            assert error < EXACT
        case "wrong":
            assert error_in_diffusers(bases[UNET], modules, path) > 0.01
        case _:
            with pytest.raises(ValueError, match="not been correctly renamed"):
                error_in_diffusers(bases[UNET], modules, path)


def test_the_documented_table_is_what_was_measured() -> None:
    names = ("LyCORIS", "ComfyUI", "AUTOMATIC1111", "diffusers")
    rows = {
        cells[0]: dict(zip(names, cells[2:], strict=True))
        for line in TABLE.read_text().splitlines()
        if line.startswith("|")
        and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 6
        and cells[0] in IN_DIFFUSERS
    }
    assert set(rows) == set(IN_DIFFUSERS)
    for kind, cells in rows.items():
        assert cells.pop("diffusers") == IN_DIFFUSERS[kind]
        for reader, cell in cells.items():
            assert (cell == "exact") is ((reader, kind) not in INEXACT), (kind, reader)
