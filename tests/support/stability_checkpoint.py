"""Write an SDXL pipeline as one file with Stability's names, as fine-tuned models are distributed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_trainer.model_cache.single_file import clip_tokenizer
from lora_trainer.train.model import tiny

Rules = list[tuple[str, str]]
RESIDUAL: Rules = [
    (r"\.norm1\.", ".in_layers.0."), (r"\.conv1\.", ".in_layers.2."), (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."), (r"\.conv2\.", ".out_layers.3."), (r"\.conv_shortcut\.", ".skip_connection."),
]  # fmt: skip
OUTSIDE: Rules = [
    (r"^time_embedding\.linear_1", "time_embed.0"), (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^add_embedding\.linear_1", "label_emb.0.0"), (r"^add_embedding\.linear_2", "label_emb.0.2"),
    (r"^conv_in", "input_blocks.0.0"), (r"^conv_norm_out", "out.0"), (r"^conv_out", "out.2"),
    (r"^mid_block\.resnets\.0", "middle_block.0"), (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.1", "middle_block.2"),
]  # fmt: skip
VAE: Rules = [
    (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"), (r"up_blocks\.(\d+)\.resnets\.(\d+)", r"up.\1.block.\2"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"), (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"), (r"conv_shortcut", "nin_shortcut"), (r"conv_norm_out", "norm_out"),
    (r"group_norm", "norm"), (r"to_out\.0", "proj_out"), (r"\.to_([qkv])\.", r".\1."),
]  # fmt: skip
OPEN_CLIP: Rules = [
    (r"^encoder\.layers\.", "transformer.resblocks."), (r"layer_norm1", "ln_1"), (r"layer_norm2", "ln_2"),
    (r"mlp\.fc1", "mlp.c_fc"), (r"mlp\.fc2", "mlp.c_proj"), (r"self_attn\.out_proj", "attn.out_proj"),
    (r"^embeddings\.token_embedding", "token_embedding"), (r"^final_layer_norm", "ln_final"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
]  # fmt: skip


def small_pipeline(folder: Path, seed: int = 0) -> StableDiffusionXLPipeline:
    """Write a small pipeline with CLIP's tokenizers and text encoders of different widths, as SDXL's are."""
    first, second = clip_tokenizer("<|endoftext|>"), clip_tokenizer("!")
    widths = (32, 48)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel.from_config(
            tiny._unet(depth=2).config,
            cross_attention_dim=sum(widths),
            projection_class_embeddings_input_dim=6 * tiny.TIME_ID_WIDTH + widths[1],
        )
        pipeline = StableDiffusionXLPipeline(
            vae=tiny._vae(),
            text_encoder=CLIPTextModel(_text_config(widths[0], first)),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(widths[1], second)),
            tokenizer=first,
            tokenizer_2=second,
            unet=unet,
            scheduler=tiny.sdxl_scheduler(),
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)
    return pipeline


def _text_config(width: int, tokenizer: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def write_checkpoint(
    pipeline: StableDiffusionXLPipeline,
    path: Path,
    dtype: torch.dtype = torch.float16,
    marks: tuple[str, ...] = (),
) -> None:
    """Write the pipeline's weights into one file.

    Args:
        marks: names of empty tensors that some trainers add.
    """
    layers = pipeline.unet.config.layers_per_block
    tensors = {
        f"model.diffusion_model.{_unet_name(n, layers)}": v for n, v in pipeline.unet.state_dict().items()
    }
    tensors |= {f"first_stage_model.{n}": v for n, v in _vae(pipeline.vae).items()}
    tensors |= {
        f"conditioner.embedders.0.transformer.text_model.{n.removeprefix('text_model.')}": v
        for n, v in pipeline.text_encoder.state_dict().items()
    }
    tensors |= {
        f"conditioner.embedders.1.model.{n}": v for n, v in _open_clip(pipeline.text_encoder_2).items()
    }
    ready = {
        name: value.to(dtype).clone().contiguous()
        for name, value in tensors.items()
        if value.is_floating_point()
    }
    save_file(ready | {mark: torch.zeros(0) for mark in marks}, path)


def _replace(name: str, rules: Rules) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def _unet_name(name: str, layers: int) -> str:
    stride = layers + 1
    if match := re.match(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)", name):
        number = 1 + int(match[1]) * stride + int(match[3])
        place = f"input_blocks.{number}.{0 if match[2] == 'resnets' else 1}"
    elif match := re.match(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)", name):
        number = int(match[1]) * stride + int(match[3])
        place = f"output_blocks.{number}.{0 if match[2] == 'resnets' else 1}"
    elif match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", name):
        place = f"input_blocks.{(int(match[1]) + 1) * stride}.0.op"
    elif match := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", name):
        # After the attention, or in its place where a block has none.
        place = f"output_blocks.{int(match[1]) * stride + layers}.2.conv"
    else:
        return _replace(_replace(name, OUTSIDE), RESIDUAL if "resnets" in name else [])
    rest = name[match.end() :]
    return place + (_replace(rest, RESIDUAL) if "resnets" in match[0] else rest)


def _vae(vae: AutoencoderKL) -> dict[str, Tensor]:
    blocks = len(vae.config.up_block_types)
    tensors = {}
    for name, value in vae.state_dict().items():
        # Stability counts the decoder's blocks from the image.
        turned = re.sub(r"up_blocks\.(\d+)", lambda match: f"up_blocks.{blocks - 1 - int(match[1])}", name)
        is_projection = ".attentions." in name and value.dim() == 2
        tensors[_replace(turned, VAE)] = value[:, :, None, None] if is_projection else value
    return tensors


def _open_clip(encoder: Any) -> dict[str, Tensor]:
    state = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    tensors = {"text_projection": state.pop("text_projection.weight").T}
    for name in list(state):
        if match := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            parts = [state.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
            tensors[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(parts)
    return tensors | {_replace(name, OPEN_CLIP): value for name, value in state.items()}
