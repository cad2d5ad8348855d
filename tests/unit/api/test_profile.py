"""Profiles: what an administrator writes by mistake is refused with words that help."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lora_api.profile import Profile, StoreProfile


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        (
            "https://s3.eu-central-1.amazonaws.com",
            "without a scheme; write 's3.eu-central-1.amazonaws.com'.*true",
        ),
        ("http://minio:9000/", "write 'minio:9000' and set `secure` to false"),
        ("minio:port", "port must be a number"),
        ("minio:70000", "port must be a number"),
        ("minio:9000/path", "HOST:PORT|port"),
        ("::1", "HOST:PORT"),
        ("a b:9000", "HOST:PORT"),
        ("user@minio:9000", "HOST:PORT"),
        ("", "at least 1"),
    ],
)
def test_an_endpoint_that_is_not_host_and_port_is_refused(endpoint: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        StoreProfile(endpoint=endpoint)


@pytest.mark.parametrize(
    "endpoint", ["minio.minio.svc:9000", "s3.amazonaws.com", "[::1]:9000", "10.0.0.1:8333"]
)
def test_an_endpoint_of_host_and_port_is_taken(endpoint: str) -> None:
    assert StoreProfile(endpoint=endpoint).endpoint == endpoint


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"source": "store", "key": "models/seg.safetensors"}, "must be a folder that transformers loads"),
        ({"source": "hub", "repo": "a/b", "variant": "fp16"}, "file, variant and vae are for base models"),
        ({"source": "hub", "repo": "a/b", "file": "m.safetensors"}, "file, variant and vae"),
        ({"source": "hub", "repo": "a/b", "vae": {"repo": "a/c"}}, "file, variant and vae"),
    ],
)
def test_a_segmentation_model_has_no_settings_of_base_models(source: dict[str, object], words: str) -> None:
    profile = {"store": {"endpoint": "minio:9000"}, "models": {}, "segmentation": source}
    with pytest.raises(ValidationError, match=words):
        Profile.model_validate(profile)
