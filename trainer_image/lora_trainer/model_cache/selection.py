"""Select the files of a model from those of a repository or a folder of the store.

Other files are not fetched. They include pickles, which are never loaded because they can execute code. Messages of
errors begin with a verb: the origin puts the name of the model in front of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from ..errors import BadConfigurationError

WITH_WEIGHTS = ("unet", "text_encoder", "text_encoder_2", "vae")
TOKENIZERS = ("tokenizer", "tokenizer_2")
WITHOUT = (*TOKENIZERS, "scheduler")
"""Components of an SDXL pipeline with and without weights. The VAE is last, because it is optional."""
INDEX = "model_index.json"
VOCABULARIES = (("vocab.json", "merges.txt"), ("tokenizer.json",))
"""Files of a tokenizer, one of these sets. Without them transformers makes a tokenizer that knows no words."""


def pipeline_files(names: Collection[str], variant: str, own_vae: bool) -> list[str]:
    """Return the files of a pipeline: safetensors of one variant, configurations, tokenizers.

    Args:
        names: paths of all files, relative to the model.
        variant: for example `fp16`; empty for weights without a variant.
        own_vae: include the pipeline's own VAE.

    Raises:
        BadConfigurationError: when a component is missing; the message names it.
    """
    if INDEX not in names:
        raise BadConfigurationError(
            f"is not a diffusers pipeline (no {INDEX}): name a folder that "
            "StableDiffusionXLPipeline.from_pretrained loads"
        )
    chosen = [INDEX]
    for component in WITH_WEIGHTS if own_vae else WITH_WEIGHTS[:-1]:
        chosen += component_files(names, f"{component}/", variant)
    for component in WITHOUT:
        matching = [name for name in names if re.fullmatch(rf"{component}/[^/]+\.(json|txt)", name)]
        if not matching:
            raise BadConfigurationError(f"has no {component}, so it is not an SDXL pipeline")
        if component in TOKENIZERS and not any(
            {f"{component}/{name}" for name in vocabulary} <= set(matching) for vocabulary in VOCABULARIES
        ):
            raise BadConfigurationError(
                f"has no vocabulary of its {component}: add {component}/vocab.json and merges.txt, or tokenizer.json"
            )
        chosen += matching
    return sorted(chosen)


def encoder_files(names: Collection[str]) -> list[str]:
    """Return the files of a model that transformers loads: safetensors, configurations, tokenizer.

    transformers 5 saves the settings of the image processor in processor_config.json, and before in
    preprocessor_config.json.

    Raises:
        BadConfigurationError: when a required file is missing; the message names it.
    """
    config = component_files(names, "", "")
    extras = r"(preprocessor_config|processor_config|tokenizer|tokenizer_config|special_tokens_map|vocab)\.json|merges\.txt"
    return sorted({*config, *(name for name in names if re.fullmatch(extras, name))})


def component_files(names: Collection[str], folder: str, variant: str) -> list[str]:
    """Return the configuration and the weights of one component. The weights are one file, or shards with an index.

    Args:
        folder: folder of the component, with a trailing slash; empty if the repository is the component.
        variant: for example `fp16`; empty for weights without a variant.

    Raises:
        BadConfigurationError: when the configuration or the weights are missing.
    """
    marked = re.escape(f".{variant}") if variant else ""
    # Names are `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors`,
    # `model-00001-of-00002.fp16.safetensors` and `model.safetensors.index.fp16.json`.
    shard = r"-\d+-of-\d+"
    endings = rf"({marked}({shard})?|{shard}{marked})\.safetensors|\.safetensors\.index{marked}\.json"
    weights = re.compile(rf"{re.escape(folder)}(diffusion_pytorch_)?model({endings})")
    matching = [name for name in names if weights.fullmatch(name)]
    if not any(name.endswith(".safetensors") for name in matching):
        what = f"of the variant {variant!r}" if variant else "without a variant"
        raise BadConfigurationError(
            f"has no weights {folder}*.safetensors {what}: correct the model in the profile, or its files"
        )
    config = f"{folder}config.json"
    if config not in names:
        raise BadConfigurationError(f"has no {config}")
    return [config, *matching]
