"""Which files an SDXL pipeline is loaded from: a repository has ten times as much, and pickles that nobody should load."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..errors import BadConfigurationError

WITH_WEIGHTS = ("unet", "text_encoder", "text_encoder_2", "vae")
WITHOUT = ("tokenizer", "tokenizer_2", "scheduler")
INDEX = "model_index.json"


def pipeline_files(names: Collection[str], variant: str, own_vae: bool) -> list[str]:
    """The files of a pipeline: safetensors of one variant, configurations, tokenizers.

    Args:
        names: all paths of the repository.
        own_vae: whether the pipeline's VAE is wanted.

    Raises:
        BadConfigurationError: naming the component that is not there.
    """
    if INDEX not in names:
        raise BadConfigurationError(
            f"is no diffusers pipeline (no {INDEX}): name a folder that "
            "StableDiffusionXLPipeline.from_pretrained loads"
        )
    chosen = [INDEX]
    for component in WITH_WEIGHTS if own_vae else WITH_WEIGHTS[:-1]:
        chosen += component_files(names, f"{component}/", variant)
    for component in WITHOUT:
        found = [name for name in names if re.fullmatch(rf"{component}/[^/]+\.(json|txt)", name)]
        if not found:
            raise BadConfigurationError(f"has no {component}, so it is no SDXL pipeline")
        chosen += found
    return sorted(chosen)


def component_files(names: Collection[str], folder: str, variant: str) -> list[str]:
    """The configuration and the weights, in one file or in shards, of one component.

    Args:
        folder: with its slash; empty where the component is the whole repository.
    """
    marked = re.escape(f".{variant}") if variant else ""
    shard = r"-\d+-of-\d+"
    endings = rf"({marked}({shard})?|{shard}{marked})\.safetensors|\.safetensors\.index{marked}\.json"
    weights = re.compile(rf"{re.escape(folder)}(diffusion_pytorch_)?model({endings})")
    found = [name for name in names if weights.fullmatch(name)]
    if not any(name.endswith(".safetensors") for name in found):
        what = f"of the variant {variant!r}" if variant else "without a variant"
        raise BadConfigurationError(
            f"has no weights {folder}*.safetensors {what}: correct the model in the profile, or its files"
        )
    config = f"{folder}config.json"
    if config not in names:
        raise BadConfigurationError(f"has no {config}")
    return [config, *found]
