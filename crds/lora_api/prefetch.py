"""The file that configures `lora_trainer prefetch`: one model to be fetched into a cache."""

from __future__ import annotations

from .base import Model
from .profile import BaseModelSource, StoreProfile
from .steps import STORE_CA_FILE, STORE_SECRET_DIR


class PrefetchConfig(Model):
    name: str
    """What the profile calls the model."""
    model: BaseModelSource
    store: StoreProfile | None = None
    """The profile's, for a model of the store."""
    cache: str
    """The cache's folder."""
    credentials_dir: str = STORE_SECRET_DIR
    ca_file: str = STORE_CA_FILE
    """Read only where the store's profile names a ConfigMap with an authority."""
