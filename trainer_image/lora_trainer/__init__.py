"""The two stages of a LoRA training job, annotation and training, each run as a process; and the demo's web page."""

from lora_api import __version__

__all__ = ["__version__"]
