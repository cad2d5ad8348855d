"""The two steps of a LoRA training job, as processes: `annotate` and `train`."""

from lora_api import __version__

__all__ = ["__version__"]
