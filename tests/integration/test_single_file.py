"""Base models of one file, from the hub and the store, are converted to the same weights and noise schedule."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from pytest_httpserver import HTTPServer
from safetensors.torch import load_file, save_file

from lora_api.profile import CheckpointFile, HubModel, StoreModel
from lora_cli.transfer import upload_file
from lora_trainer.errors import BadConfigurationError
from lora_trainer.model_cache import fill, find, origin_of, single_file
from lora_trainer.train.model.base_model import fetch_base_model
from tests.conftest import RunningStore
from tests.support.hub import COMMIT, FakeHub
from tests.support.stability_checkpoint import small_pipeline, write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXLPipeline:
    return small_pipeline(tmp_path_factory.mktemp("small"))


@pytest.fixture(autouse=True)
def small_configurations(
    pipeline: StableDiffusionXLPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read the small model's configurations instead of SDXL's, whose weights no test has."""
    folder = tmp_path / "configurations"
    pipeline.save_pretrained(tmp_path / "saved")
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        (folder / name).mkdir(parents=True)
        shutil.copy(tmp_path / "saved" / name / "config.json", folder / name)
    monkeypatch.setattr(single_file, "CONFIGURATIONS", folder)


@pytest.mark.parametrize(
    ("marks", "settings", "prediction", "zero_snr"),
    [
        ((), {}, "epsilon", False),
        (("v_pred",), {}, "v_prediction", False),
        (("v_pred", "ztsnr"), {}, "v_prediction", True),
        ((), {"prediction": "Velocity", "zeroTerminalSNR": True}, "v_prediction", True),
        (("v_pred", "ztsnr"), {"prediction": "Epsilon", "zeroTerminalSNR": False}, "epsilon", False),
    ],
)
def test_every_weight_and_the_noise_schedule_survive(
    pipeline: StableDiffusionXLPipeline,
    tmp_path: Path,
    marks: tuple[str, ...],
    settings: dict[str, object],
    prediction: str,
    zero_snr: bool,
) -> None:
    write_checkpoint(pipeline, tmp_path / "model.safetensors", torch.float32, marks)
    files = single_file.convert(
        tmp_path / "model.safetensors", tmp_path / "model", CheckpointFile.model_validate(settings)
    )
    assert {"model/unet/config.json", "model/tokenizer_2/tokenizer.json"} <= {file.key for file in files}
    converted = StableDiffusionXLPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        expected = getattr(pipeline, name).state_dict()
        weights = getattr(converted, name).state_dict()
        assert weights.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(weights[key], value), f"{name}.{key}"
    for name in ("tokenizer", "tokenizer_2"):
        text = "a photo of a CUS statue, 3 o'clock"
        assert getattr(converted, name)(text).input_ids == getattr(pipeline, name)(text).input_ids
        assert getattr(converted, name).pad_token == getattr(pipeline, name).pad_token
    assert converted.scheduler.config.prediction_type == prediction
    assert converted.scheduler.config.rescale_betas_zero_snr == zero_snr
    last = converted.scheduler.alphas_cumprod[-1]
    assert bool(last < 1e-6) == zero_snr


UNET, VAE = "model.diffusion_model.", "first_stage_model."
FIRST, SECOND = "conditioner.embedders.0.", "conditioner.embedders.1."


@pytest.mark.parametrize(
    ("stored", "one_tensor", "kept"),
    [
        ({UNET: torch.float16}, {}, {"unet": torch.float16}),
        ({VAE: torch.bfloat16}, {}, {"vae": torch.bfloat16}),
        (
            {UNET: torch.float8_e4m3fn, FIRST: torch.float16, SECOND: torch.bfloat16},
            {},
            {"unet": torch.float8_e4m3fn, "text_encoder": torch.float16, "text_encoder_2": torch.bfloat16},
        ),
        ({UNET: torch.float16}, {single_file.REQUIRED["the UNet"]: torch.float32}, {}),
        ({UNET: torch.float16}, {single_file.REQUIRED["the UNet"]: torch.bfloat16}, {}),
        (
            {UNET: torch.float16},
            {single_file.REQUIRED["the UNet"]: torch.float8_e4m3fn},
            {"unet": torch.float16},
        ),
        (
            {UNET: torch.float8_e5m2},
            {single_file.REQUIRED["the UNet"]: torch.float8_e4m3fn},
            {"unet": torch.float16},
        ),
    ],
)
def test_every_component_keeps_its_number_format(
    pipeline: StableDiffusionXLPipeline,
    tmp_path: Path,
    stored: dict[str, torch.dtype],
    one_tensor: dict[str, torch.dtype],
    kept: dict[str, torch.dtype],
) -> None:
    path = tmp_path / "model.safetensors"
    write_checkpoint(pipeline, path, torch.float32)
    tensors = load_file(path)
    for name, tensor in tensors.items():
        dtype = next((each for prefix, each in stored.items() if name.startswith(prefix)), torch.float32)
        tensors[name] = tensor.to(one_tensor.get(name, dtype))
    save_file(tensors, path)
    single_file.convert(path, tmp_path / "model", CheckpointFile())
    # The values that the file has, all as float32: a conversion without loss gives the same.
    save_file({name: tensor.float() for name, tensor in tensors.items()}, tmp_path / "exact.safetensors")
    single_file.convert(tmp_path / "exact.safetensors", tmp_path / "exact", CheckpointFile())
    for component in ("unet", "vae", "text_encoder", "text_encoder_2"):
        expected = weights_of(tmp_path / "exact" / component)
        weights = weights_of(tmp_path / "model" / component)
        assert {tensor.dtype for tensor in weights.values()} == {kept.get(component, torch.float32)}
        assert weights.keys() == expected.keys()
        for name, tensor in weights.items():
            assert torch.equal(tensor.float(), expected[name]), f"{component}.{name}"


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: each for path in folder.glob("*.safetensors") for name, each in load_file(path).items()}


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.diffusion_model.input_blocks.0.0.scale_weight", torch.ones(1)),
        ("conditioner.embedders.1.model.ln_final.weight", torch.ones(48, dtype=torch.int8)),
    ],
)
def test_quantized_weights_are_refused(
    pipeline: StableDiffusionXLPipeline, tmp_path: Path, name: str, tensor: torch.Tensor
) -> None:
    path = tmp_path / "model.safetensors"
    write_checkpoint(pipeline, path)
    save_file(load_file(path) | {name: tensor}, path)
    with pytest.raises(BadConfigurationError, match=rf"quantized .*{name}: choose .* fp16, bf16 or fp32"):
        single_file.convert(path, tmp_path / "model", CheckpointFile())


def test_clips_tokenizer_is_openais() -> None:
    tokenizer = single_file.clip_tokenizer("!")
    assert len(tokenizer) == 49408
    # Published examples of CLIP's vocabulary.
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.pad_token_id == 0


def test_a_file_of_the_store_trains(
    pipeline: StableDiffusionXLPipeline, running_store: RunningStore, tmp_path: Path, uid: str
) -> None:
    path = tmp_path / "model.safetensors"
    write_checkpoint(pipeline, path)
    bucket, source = running_store.store.input, StoreModel(source="store", key=f"models/{uid}.safetensors")
    bucket.put_file(source.key, path)
    bucket.put(f"{source.key}.notes", b"a longer key")
    model = fetch_base_model(source, tmp_path / "cache", bucket)
    assert model.unet(torch.float16).dtype == torch.float16
    assert model.noise_scheduler().config.prediction_type == "epsilon"
    entry = find(origin_of(source, bucket), tmp_path / "cache")
    assert entry is not None
    assert not list((tmp_path / "cache").rglob("checkpoint.safetensors"))
    # Other settings create another model in the cache.
    velocity = source.model_copy(update={"checkpoint": CheckpointFile(prediction="Velocity")})
    assert find(origin_of(velocity, bucket), tmp_path / "cache") is None
    with pytest.raises(BadConfigurationError, match=r"models/none\.safetensors does not exist"):
        fill(origin_of(StoreModel(source="store", key="models/none.safetensors"), bucket), tmp_path / "cache")


def test_a_file_of_the_hub_is_fetched_alone(
    pipeline: StableDiffusionXLPipeline,
    httpserver: HTTPServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = FakeHub(httpserver)
    hub.use(monkeypatch)
    write_checkpoint(pipeline, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    hub.repos["studio/tuned"] = {"tuned_v2.safetensors": data, "tuned_v1.safetensors": b"old"}
    source = HubModel(source="hub", repo="studio/tuned", file="tuned_v2.safetensors")
    model = fill(origin_of(source, None), tmp_path / "cache")
    assert hub.downloads() == ["tuned_v2.safetensors"]
    assert model.contents.identity == f"hub:studio/tuned/tuned_v2.safetensors@{COMMIT}"
    assert (
        json.loads((model.folder / "scheduler/scheduler_config.json").read_text())["prediction_type"]
        == "epsilon"
    )
    absent = source.model_copy(update={"file": "v3.safetensors"})
    with pytest.raises(BadConfigurationError, match=r"'studio/tuned' has no file v3\.safetensors"):
        fill(origin_of(absent, None), tmp_path / "cache")


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("first_stage_model.", "lacks the VAE; choose"),
        ("conditioner.embedders.1.", "lacks the second text encoder; choose"),
        ("conditioner.", "lacks the first text encoder, the second text encoder; choose"),
    ],
)
def test_an_incomplete_checkpoint_is_refused_by_component(
    pipeline: StableDiffusionXLPipeline, tmp_path: Path, remove: str, message: str
) -> None:
    path = tmp_path / "model.safetensors"
    write_checkpoint(pipeline, path)
    save_file({name: value for name, value in load_file(path).items() if not name.startswith(remove)}, path)
    with pytest.raises(BadConfigurationError, match=message):
        single_file.convert(path, tmp_path / "model", CheckpointFile())


def test_other_files_are_refused(pipeline: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(BadConfigurationError, match=r"damaged model\.safetensors"):
        single_file.convert(path, tmp_path / "model", CheckpointFile())
    write_checkpoint(pipeline, path, marks=("ztsnr",))
    with pytest.raises(BadConfigurationError, match=r"checkpoint\.prediction to Velocity"):
        single_file.convert(path, tmp_path / "model", CheckpointFile())


def test_a_file_is_uploaded_to_its_key_once(running_store: RunningStore, tmp_path: Path, uid: str) -> None:
    bucket, path, key = running_store.store.input, tmp_path / "house.safetensors", f"models/{uid}.safetensors"
    path.write_bytes(b"weights")
    bucket.put(f"{key}.notes", b"a longer key")
    assert [upload_file(bucket, path, key) for _ in range(2)] == [1, 0]
    path.write_bytes(b"changed")
    assert upload_file(bucket, path, key) == 1
    assert bucket.get(key) == b"changed"
