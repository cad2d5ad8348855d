"""Python code that loads a published adapter, for the report and the model card."""

from __future__ import annotations

import json

from lora_api.job import Concept
from lora_api.keys import file_name_of
from lora_api.manifest import EmbeddingsEntry
from lora_api.profile import BaseModelSource, HubModel

from ...new_tokens import opening

TEMPLATE = """import torch
from diffusers import {classes}
{imports}
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.float16 if device == "cuda" else torch.float32
{vae}pipeline = StableDiffusionXLPipeline.from_pretrained({base}, torch_dtype=dtype{options}).to(device)
pipeline.load_lora_weights(".", weight_name="{file}")
{embeddings}image = pipeline("{prompt}", num_inference_steps=25).images[0]
image.save("image.png")
"""


EMBEDDINGS = """embeddings, tokens = load_file("{file}"), {tokens}
for key, tokenizer, text_encoder in (
    ("clip_l", pipeline.tokenizer, pipeline.text_encoder),
    ("clip_g", pipeline.tokenizer_2, pipeline.text_encoder_2),
):
    pipeline.load_textual_inversion(embeddings[key], token=tokens, tokenizer=tokenizer, text_encoder=text_encoder)
"""


def usage_snippet(
    base_model: BaseModelSource,
    concept: Concept,
    file_name: str,
    embeddings: EmbeddingsEntry | None = None,
) -> str:
    """Build a script that runs unchanged in the folder with the adapter's files.

    A base model from the store has no public name. For it, the script loads a local folder with the model's name.

    Args:
        file_name: name of the adapter's file.
        embeddings: the embeddings of new tokens; None where there are none.
    """
    tokens = embeddings.tokens if embeddings else []
    load = (
        EMBEDDINGS.format(file=file_name_of(embeddings.key), tokens=json.dumps(tokens)) if embeddings else ""
    )
    vae, options, classes = "", "", "StableDiffusionXLPipeline"
    if isinstance(base_model, HubModel):
        base = base_model.repo
        if base_model.revision:
            options += f', revision="{base_model.revision}"'
        if base_model.variant:
            options += f', variant="{base_model.variant}"'
        if base_model.vae:
            classes = "AutoencoderKL, StableDiffusionXLPipeline"
            revision = f', revision="{base_model.vae.revision}"' if base_model.vae.revision else ""
            vae = (
                f'vae = AutoencoderKL.from_pretrained("{base_model.vae.repo}", torch_dtype=dtype{revision})\n'
            )
            options += ", vae=vae"
    else:
        base = local_name(base_model)
    return TEMPLATE.format(
        classes=classes,
        imports="from safetensors.torch import load_file\n" if embeddings else "",
        vae=vae,
        base=f'"{base}"',
        options=options,
        file=file_name,
        embeddings=load,
        prompt=opening(concept, tokens),
    )


def local_name(base_model: BaseModelSource) -> str:
    """Return the last part of a store model's key, which names its local folder; empty for models of the hub."""
    return "" if isinstance(base_model, HubModel) else base_model.key.rstrip("/").rpartition("/")[2]
