"""Which files of a repository are fetched."""

from __future__ import annotations

import pytest

from lora_trainer.errors import BadConfigurationError
from lora_trainer.model_cache.selection import component_files, pipeline_files

SDXL_BASE = [
    ".gitattributes",
    "01.png",
    "LICENSE.md",
    "README.md",
    "model_index.json",
    "pipeline.png",
    "sd_xl_base_1.0.safetensors",
    "sd_xl_base_1.0_0.9vae.safetensors",
    "sd_xl_offset_example-lora_1.0.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.onnx",
    "text_encoder/model.safetensors",
    "text_encoder/openvino_model.bin",
    "text_encoder/openvino_model.xml",
    "text_encoder_2/config.json",
    "text_encoder_2/flax_model.msgpack",
    "text_encoder_2/model.fp16.safetensors",
    "text_encoder_2/model.onnx",
    "text_encoder_2/model.onnx_data",
    "text_encoder_2/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/tokenizer_config.json",
    "tokenizer_2/vocab.json",
    "unet/config.json",
    "unet/diffusion_flax_model.msgpack",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/model.onnx",
    "unet/model.onnx_data",
    "unet/openvino_model.bin",
    "vae/config.json",
    "vae/diffusion_flax_model.msgpack",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "vae_1_0/config.json",
    "vae_1_0/diffusion_pytorch_model.fp16.safetensors",
    "vae_1_0/diffusion_pytorch_model.safetensors",
    "vae_decoder/model.onnx",
    "vae_encoder/model.onnx",
]
"""Files of stabilityai/stable-diffusion-xl-base-1.0, which has 77 GB in all."""

CHOSEN = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.fp16.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/tokenizer_config.json",
    "tokenizer_2/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
]


def test_of_sdxl_only_what_a_pipeline_is_loaded_from() -> None:
    assert pipeline_files(SDXL_BASE, "fp16", own_vae=True) == CHOSEN
    plain = [name.replace(".fp16", "") for name in CHOSEN]
    assert pipeline_files(SDXL_BASE, "", own_vae=True) == plain
    without = [name for name in CHOSEN if not name.startswith("vae/")]
    assert pipeline_files(SDXL_BASE, "fp16", own_vae=False) == without


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        (
            "",
            [
                "diffusion_pytorch_model-00001-of-00002.safetensors",
                "diffusion_pytorch_model-00002-of-00002.safetensors",
                "diffusion_pytorch_model.safetensors.index.json",
            ],
        ),
        (
            "fp16",
            [
                "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
                "diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
                "diffusion_pytorch_model.safetensors.index.fp16.json",
            ],
        ),
        ("fp16", ["model-00001-of-00001.fp16.safetensors"]),
    ],
)
def test_shards_come_with_their_index(variant: str, names: list[str]) -> None:
    other = [
        "unet/diffusion_pytorch_model.bf16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
    ]
    expected_files = [f"unet/{name}" for name in names]
    assert component_files(["unet/config.json", *other, *expected_files], "unet/", variant) == [
        "unet/config.json",
        *expected_files,
    ]


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("model_index.json", "is not a diffusers pipeline"),
        ("unet/diffusion_pytorch_model.fp16.safetensors", "has no weights unet/.* of the variant 'fp16'"),
        ("text_encoder_2/model.fp16.safetensors", "has no weights text_encoder_2/"),
        ("text_encoder/config.json", "has no text_encoder/config.json"),
        ("tokenizer_2/", "has no tokenizer_2"),
        ("tokenizer/vocab.json", "has no vocabulary of its tokenizer: add tokenizer/vocab.json"),
        ("tokenizer_2/merges.txt", "has no vocabulary of its tokenizer_2"),
    ],
)
def test_what_is_missing_is_named(missing: str, words: str) -> None:
    names = [name for name in SDXL_BASE if not name.startswith(missing)]
    with pytest.raises(BadConfigurationError, match=words):
        pipeline_files(names, "fp16", own_vae=True)
