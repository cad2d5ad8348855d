"""Loading of models by the `from_pretrained` of transformers and diffusers.

For a damaged model both raise errors of many types, and weights that a file lacks get random numbers, with no more than a
line in the log.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from .errors import BadConfigurationError
from .train.memory.errors import is_out_of_memory

DAMAGE = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError),
    *(SafetensorError, StrictDataclassError),
)
"""Errors that transformers and diffusers raise for damaged files, and for files that do not belong together."""
HOST_MEMORY = ("can't allocate memory", "not enough memory")
"""Parts of the messages of PyTorch's RuntimeErrors about the memory of the host; `is_out_of_memory` knows those of GPUs."""


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Name a model, or a part of it, in the errors of loading it.

    Args:
        what: for example `the base model's UNet`.

    Raises:
        BadConfigurationError: when files are missing, damaged, or do not belong together. Errors of the machine, such as
            a full disk, are not changed.
    """
    try:
        yield
    except DAMAGE as error:
        if _is_of_machine(error):
            raise
        reason = (str(error).strip().splitlines() or [""])[0]
        raise BadConfigurationError(
            f"{what} cannot be loaded: {reason or type(error).__name__}; replace its files, or choose another model"
        ) from error


def load(kind: Any, folder: Path | str, what: str, unused: tuple[str, ...] = (), **options: Any) -> Any:
    """Load a model with all of its weights.

    Args:
        kind: the class of the model, of transformers or diffusers.
        folder: the folder, or the name of a repository.
        what: the model, or the part of it, for messages.
        unused: beginnings of the names of weights that may be missing, because they are not used.
        options: further arguments of `from_pretrained`.

    Raises:
        BadConfigurationError: as in `loading`, and when a file lacks weights.
    """
    with loading(what):
        model, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(unused))
    if missing:
        raise BadConfigurationError(
            f"{what} lacks {len(missing)} of its weights, for example {missing[0]}: replace its files, or choose another model"
        )
    return model


def _is_of_machine(error: Exception) -> bool:
    """Whether an error is the operating system's or about memory. The libraries raise OSErrors of their own without errno."""
    if isinstance(error, OSError):
        return error.errno not in (None, errno.ENOENT)
    return is_out_of_memory(error) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in HOST_MEMORY)
    )
