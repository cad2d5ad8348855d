"""CLIPSeg models of a few thousand weights, saved as users save theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from lora_trainer.store import Bucket

SIDE, PATCH = 64, 8
"""Sides of the model's input and of its patches, in pixels."""
GAIN, OFFSET = 10.0, -3.0
"""The logit of a patch is GAIN times its mean, from -1 to 1, plus OFFSET, so that much of a photograph is not marked."""

Marks = Literal["bright", "nothing", "everything", "not finite", "random"]


def write_segmenter(
    folder: Path, marks: Marks = "bright", *, layout: Literal["one file", "hub"] = "one file"
) -> Path:
    """Write a CLIPSeg whose weights mark what `marks` says, and return its folder.

    Args:
        marks: `bright`: each patch by its mean brightness. `random`: the weights are random ones.
        layout: `one file`: the processor as transformers 5 saves it. `hub`: as in the repositories of CIDAS, whose
            files are of transformers 4.
    """
    import torch
    from transformers import (
        CLIPSegConfig,
        CLIPSegForImageSegmentation,
        CLIPSegProcessor,
        ViTImageProcessorPil,
    )

    from lora_trainer.train.model.tiny import END, tiny_tokenizer

    tokenizer = tiny_tokenizer(END)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPSegConfig(
        text_config={
            **small,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**small, "image_size": SIDE, "patch_size": PATCH},
        projection_dim=16,
        reduce_dim=16,
        extract_layers=[0],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = CLIPSegForImageSegmentation(config)
        last = model.decoder.transposed_convolution
        if marks != "random":
            _read_brightness(model)
        if marks not in ("bright", "random"):
            last.weight.zero_()
            last.bias.fill_({"nothing": -50.0, "everything": 50.0, "not finite": torch.nan}[marks])
    model.save_pretrained(folder)
    images = ViTImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=2
    )
    if layout == "one file":
        CLIPSegProcessor(images, tokenizer).save_pretrained(folder)
    else:
        _write_hub_processor(folder, tokenizer.backend_tokenizer.to_str(), images.to_dict())
    return folder


def _write_hub_processor(folder: Path, tokenizer: str, images: dict[str, object]) -> None:
    """Write the processor's files as in CIDAS/clipseg-rd64-refined: no tokenizer.json, and names of transformers 4."""
    bpe = json.loads(tokenizer)["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in bpe["merges"]]
    names = ("do_normalize", "do_resize", "image_mean", "image_std", "resample", "size")
    kept = {name: images[name] for name in names}
    end = {
        "content": "<|endoftext|>",
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }
    files: dict[str, object] = {
        "vocab.json": bpe["vocab"],
        "preprocessor_config.json": {
            **kept,
            "image_processor_type": "ViTImageProcessor",
            "processor_class": "CLIPSegProcessor",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "processor_class": "CLIPSegProcessor",
            "model_max_length": 77,
            "eos_token": {"__type": "AddedToken", **end},
            "pad_token": "<|endoftext|>",
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def _read_brightness(model: object) -> None:
    """Set a model's weights so that the logit of a patch follows from its mean, as GAIN says.

    Channel 0 has the brightness. Two others are large and equal, so that layer normalisation divides by a constant.
    """
    import torch

    for module in model.modules():  # type: ignore[attr-defined]
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.fill_(1)
            module.bias.zero_()
    vision, decoder = model.clip.vision_model, model.decoder  # type: ignore[attr-defined]
    vision.embeddings.class_embedding.zero_()
    vision.embeddings.patch_embedding.weight.zero_()
    vision.embeddings.patch_embedding.weight[0] = 1 / (3 * PATCH**2)
    vision.embeddings.position_embedding.weight.zero_()
    vision.embeddings.position_embedding.weight[:, 1] = 100
    vision.embeddings.position_embedding.weight[:, 2] = -100
    for layer in (*vision.encoder.layers, *decoder.layers):
        for part in (layer.self_attn.out_proj, layer.mlp.fc2):
            part.weight.zero_()
            part.bias.zero_()
    for part, weight, bias in (
        (decoder.film_mul, torch.zeros(16, 16), 1.0),
        (decoder.film_add, torch.zeros(16, 16), 0.0),
        (decoder.reduces[0], torch.eye(16), 0.0),
    ):
        part.weight.copy_(weight)
        part.bias.fill_(bias)
    decoder.transposed_convolution.weight.zero_()
    # the standard deviation of 100, -100 and 14 zeros is 100 / sqrt(8)
    decoder.transposed_convolution.weight[0] = GAIN * 100 / 8**0.5
    decoder.transposed_convolution.bias.fill_(OFFSET)


def upload(bucket: Bucket, folder: Path, prefix: str) -> None:
    """Upload the files of a folder to a bucket under a prefix."""
    for path in folder.iterdir():
        bucket.put(f"{prefix}{path.name}", path.read_bytes())
