"""Which base models can be trained at all, and which are refused as damaged."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_trainer.errors import BadConfigurationError
from lora_trainer.pretrained import loading
from lora_trainer.train.model.base_model import BaseModel
from lora_trainer.train.model.tiny import write_tiny_sdxl


def model(folder: Path, name: str, **config: object) -> BaseModel:
    (folder / "scheduler").mkdir()
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": name, **config}))
    return BaseModel(folder, "some model")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_models_on_ddpms_schedule_are_taken_as_they_say(tmp_path: Path, prediction: str) -> None:
    found = model(tmp_path, "EulerDiscreteScheduler", prediction_type=prediction, beta_end=0.012)
    schedule = found.noise_scheduler()
    assert schedule.config.prediction_type == prediction
    assert schedule.config.beta_end == 0.012


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        ("EDMDPMSolverMultistepScheduler", "epsilon"),
        ("EDMEulerScheduler", "v_prediction"),
        ("FlowMatchEulerDiscreteScheduler", "epsilon"),
        ("EulerDiscreteScheduler", "sample"),
    ],
)
def test_other_formulations_are_refused_by_name(tmp_path: Path, name: str, prediction: str) -> None:
    with pytest.raises(BadConfigurationError, match=f"{name} with prediction {prediction}: .* baseModel"):
        model(tmp_path, name, prediction_type=prediction).noise_scheduler()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_tiny_sdxl(folder)
    return folder


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    """A copy of a small SDXL, to be damaged."""
    return Path(copytree(whole, tmp_path / "model"))


def load_all(folder: Path) -> None:
    found = BaseModel(folder, "some model")
    found.noise_scheduler()
    found.text_encoders(torch.float32)
    found.vae(torch.float32)
    found.unet(torch.float32)


def weights_of(folder: Path, part: str) -> Path:
    (path,) = (folder / part).glob("*.safetensors")
    return path


def change_weights(folder: Path, part: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = weights_of(folder, part)
    save_file(change(load_file(path)), path, {"format": "pt"})


PARTS = {
    "unet": "UNet",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="cut off"),
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>404 Not Found</html>", id="page of an error"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 7\n", id="pointer of Git LFS"
        ),
    ],
)
def test_damaged_weights_are_refused(damaged: Path, part: str, content: bytes | None) -> None:
    path = weights_of(damaged, part)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if content is None else content)
    with pytest.raises(
        BadConfigurationError, match=f"^the base model's {PARTS[part]} cannot be loaded: .*model$"
    ):
        load_all(damaged)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_lacks_weights_is_refused(damaged: Path, part: str) -> None:
    """transformers and diffusers would fill the gap with random numbers."""
    names = sorted(load_file(weights_of(damaged, part)))
    change_weights(damaged, part, lambda weights: {name: weights[name] for name in names[3:]})
    with pytest.raises(BadConfigurationError, match=f"the base model's {PARTS[part]} lacks 3 of its weights"):
        load_all(damaged)


@pytest.mark.parametrize("part", PARTS)
def test_weights_of_another_size_are_refused(damaged: Path, part: str) -> None:
    name = max(load_file(weights_of(damaged, part)))
    change_weights(damaged, part, lambda weights: {**weights, name: torch.zeros(7)})
    with pytest.raises(BadConfigurationError, match=f"the base model's {PARTS[part]} cannot be loaded"):
        load_all(damaged)


def test_the_first_text_encoder_in_place_of_the_second_is_refused(damaged: Path) -> None:
    copytree(damaged / "text_encoder", damaged / "text_encoder_2", dirs_exist_ok=True)
    with pytest.raises(BadConfigurationError, match="the base model's second text encoder"):
        load_all(damaged)


@pytest.mark.filterwarnings("ignore:It is deprecated to pass a pretrained model:FutureWarning")
@pytest.mark.parametrize("content", ["{", "[]", "7"])
@pytest.mark.parametrize(
    ("name", "part"),
    [
        *((f"{folder}/config.json", part) for folder, part in PARTS.items()),
        ("scheduler/scheduler_config.json", "scheduler"),
        ("tokenizer/tokenizer.json", "tokenizers"),
        ("tokenizer_2/tokenizer_config.json", "tokenizers"),
    ],
)
def test_a_damaged_configuration_is_refused(damaged: Path, name: str, part: str, content: str) -> None:
    (damaged / name).write_text(content)
    with pytest.raises(BadConfigurationError, match=f"the base model's {part} cannot be loaded"):
        load_all(damaged)


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("unet", {"in_channels": "four"}),
        ("vae", {"block_out_channels": 3}),
        ("text_encoder", {"hidden_size": "wide"}),
        ("text_encoder_2", {"num_attention_heads": "many"}),
    ],
)
def test_a_configuration_with_an_impossible_value_is_refused(
    damaged: Path, part: str, setting: dict[str, object]
) -> None:
    path = damaged / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(BadConfigurationError, match=f"the base model's {PARTS[part]} cannot be loaded"):
        load_all(damaged)


def test_errors_of_the_machine_are_not_blamed_on_the_model() -> None:
    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ):
        with pytest.raises(type(error), match=re.escape(str(error))), loading("the base model"):
            raise error


def old_vae_name(name: str) -> str:
    """Return the name that a weight of an attention has in Stability AI's VAE of SDXL, from before diffusers 0.12."""
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name


def test_weights_under_older_names_are_complete(damaged: Path) -> None:
    """SDXL's own files have the names of transformers 4 (`text_model.`, `position_ids`) and of the first diffusers."""
    before = {part: load_file(weights_of(damaged, part)) for part in PARTS}
    for part in ("text_encoder", "text_encoder_2"):
        prefix = "" if any(name.startswith("text_model.") for name in before[part]) else "text_model."
        change_weights(
            damaged,
            part,
            lambda weights, prefix=prefix: {  # type: ignore[misc]
                **{
                    (name if name.startswith("text_proj") else prefix + name): weights[name]
                    for name in weights
                },
                "text_model.embeddings.position_ids": torch.arange(77)[None],
            },
        )
    change_weights(
        damaged, "vae", lambda weights: {old_vae_name(name): value for name, value in weights.items()}
    )
    found = BaseModel(damaged, "some model")
    for encoder, part in zip(
        found.text_encoders(torch.float32), ("text_encoder", "text_encoder_2"), strict=True
    ):
        for name, value in encoder.encoder.state_dict().items():
            stored = before[part].get(name, before[part].get(f"text_model.{name}"))
            if stored is None:
                stored = before[part][name.removeprefix("text_model.")]
            assert torch.equal(value, stored), name
    for name, value in found.vae(torch.float32).state_dict().items():
        assert torch.equal(value, before["vae"][name]), name
