"""Profiles: what an administrator writes by mistake is refused with words that help."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lora_api.profile import StoreProfile


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
