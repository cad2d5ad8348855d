"""The file of the new tokens' embeddings, in the form of diffusers' train_dreambooth_lora_sdxl_advanced.py.

ComfyUI, Forge and AUTOMATIC1111 read the same file: each of their text encoders takes the matrix of its name.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from ...new_tokens import PREFIX
from ..model.token_embeddings import TokenEmbeddings
from .adapter_file import ExportError
from .metadata import TOKENS_KEY
from .tensors import write_tensors

FILE_NAME = "embeddings.safetensors"


def write_embeddings(path: Path, embeddings: TokenEmbeddings) -> None:
    """Write the matrices clip_l and clip_g, float32, (tokens, width of the encoder), and read them back.

    Raises:
        ExportError: if the file does not have the trained embeddings.
    """
    tensors = {
        name.removeprefix(f"{PREFIX}."): parameter.detach()
        for name, parameter in embeddings.parameters().items()
    }
    write_tensors(path, tensors, {"format": "pt", TOKENS_KEY: "".join(embeddings.tokens)})
    read = load_file(path)
    for key, tensor in tensors.items():
        if key not in read or not torch.equal(read[key], tensor.cpu()):
            raise ExportError(f"{path.name} differs from the trained embeddings at {key}")
