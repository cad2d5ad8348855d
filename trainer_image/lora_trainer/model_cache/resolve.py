"""Select the origin of a model from its source in the profile."""

from __future__ import annotations

from typing import Literal

from lora_api.profile import BaseModelSource, StoreModel

from ..errors import BadConfigurationError
from ..store import Bucket
from .origin import Origin


def origin_of(
    source: BaseModelSource, bucket: Bucket | None, kind: Literal["pipeline", "encoder"] = "pipeline"
) -> Origin:
    """Return the origin of a model.

    The modules of origins are imported here, so that a job with a model in the store does not load the hub's client.

    Args:
        bucket: the input bucket, required for models of the `store` source.
        kind: which files to fetch: those of a diffusers pipeline, or of a model that transformers loads.

    Raises:
        BadConfigurationError: when the model is in the store and there is no bucket.
    """
    if isinstance(source, StoreModel):
        from .store_origin import StoreOrigin

        if bucket is None:
            raise BadConfigurationError(f"the model {source.key} is in the store, and no store is configured")
        return StoreOrigin(source, bucket, kind)
    from .hub_origin import HubOrigin

    return HubOrigin(source, kind)
