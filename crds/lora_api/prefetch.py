"""Configuration file of `lora_trainer prefetch`, which downloads one model into a cache."""

from __future__ import annotations

from typing import Literal

from .base import Model
from .profile import BaseModelSource, StoreProfile
from .stages import STORE_CA_FILE, STORE_SECRET_DIR


class PrefetchConfig(Model):
    """Configuration of one download."""

    name: str
    """Name of the model in the profile."""
    model: BaseModelSource
    kind: Literal["pipeline", "encoder"] = "pipeline"
    """pipeline: a base model. encoder: a scoring or segmentation model."""
    store: StoreProfile | None = None
    """The profile's store, for a model whose source is store."""
    cache: str
    """Folder of the cache."""
    credentials_dir: str = STORE_SECRET_DIR
    """Folder with the files accessKey and secretKey."""
    ca_file: str = STORE_CA_FILE
    """CA certificate of the store. Used only if the profile's store has a caConfigMap."""
