"""A small SDXL pipeline with random weights, built from the real classes, for trials and tests without the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = [
    "a",
    "an",
    "the",
    "of",
    "on",
    "in",
    "with",
    "and",
    "photo",
    "picture",
    "statue",
    "dog",
    "cat",
    "person",
    "style",
    "white",
    "black",
    "red",
    "blue",
    "green",
]
TEXT_WIDTH = 32
"""Width of each text encoder's embeddings. The UNet gets both, concatenated."""
TIME_ID_WIDTH = 8


def write_tiny_sdxl(directory: Path, seed: int = 0, depth: int = 2) -> None:
    """Write a pipeline that `StableDiffusionXLPipeline.from_pretrained` loads, about 5 MB in float32.

    It has the parts of SDXL that matter to a trainer: two text encoders (the second with a projection), size and
    crop conditioning, a VAE that reduces each side by 8, and blocks with and without attention.

    Args:
        directory: folder, which is created if necessary. Files with the same names are overwritten.
        seed: seed of the random weights.
        depth: number of layers of the UNet's blocks and transformers.
    """
    first, second = tiny_tokenizer(pad=END), tiny_tokenizer(pad="!")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(first, "quick_gelu")),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(second, "gelu")),
            tokenizer=first,
            tokenizer_2=second,
            unet=_unet(depth),
            scheduler=sdxl_scheduler(),
            add_watermarker=False,
        )
    pipeline.save_pretrained(directory)


def tiny_tokenizer(pad: str, words: Sequence[str] = WORDS) -> CLIPTokenizer:
    """Build a tokenizer with CLIP's byte-level BPE, a vocabulary of all bytes, and merges for a few words.

    Args:
        pad: the padding token; SDXL's second tokenizer pads with "!".
        words: words that are one token each. All other words are split into letters or shorter pieces.
    """
    letters = list(bytes_to_unicode().values())
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [left + right for left, right in merges]
    tokens += [START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(
        vocab=vocabulary, merges=list(dict.fromkeys(merges)), pad_token=pad, model_max_length=77
    )


def sdxl_scheduler() -> EulerDiscreteScheduler:
    """Build the noise schedule of SDXL base 1.0."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )


def _vae() -> AutoencoderKL:
    widths = (16, 16, 32, 32)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=0.13025,
        force_upcast=False,
    )


def _unet(depth: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=depth,
        transformer_layers_per_block=(1, depth),
        attention_head_dim=(2, 4),
        cross_attention_dim=2 * TEXT_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_WIDTH,
        projection_class_embeddings_input_dim=6 * TIME_ID_WIDTH + TEXT_WIDTH,
        norm_num_groups=8,
        use_linear_projection=True,
    )


def _text_config(tokenizer: CLIPTokenizer, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
