"""Address and keys of an S3 store, from `--endpoint` and the LORA_STORE_* or AWS_* environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from minio import Minio

    from lora_trainer.store import Bucket

KEYS = {
    "access_key": ("LORA_STORE_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
    "secret_key": ("LORA_STORE_SECRET_KEY", "AWS_SECRET_ACCESS_KEY"),
}
"""Environment variables of each key. The first one that is set is used."""
RETRIES = 2
"""Low, because a user waits: an absent store is reported after about two seconds."""


@dataclass(frozen=True)
class StoreAddress:
    """An S3 service and the credentials for it."""

    endpoint: str
    """Host and port, as HOST:PORT."""
    secure: bool
    """Whether the service uses TLS."""
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    region: str = ""
    ca_file: str = ""
    """PEM file of the certificate authority; empty for the public authorities."""

    def client(self, retries: int = RETRIES) -> Minio:
        """Build an S3 client; nothing is sent yet.

        Raises:
            BadConfigurationError: when the endpoint or the CA file cannot be used.
        """
        from minio.credentials.providers import StaticProvider

        from lora_trainer.store import connect

        return connect(
            self.endpoint,
            StaticProvider(self.access_key, self.secret_key),
            secure=self.secure,
            region=self.region,
            ca_file=self.ca_file,
            retries=retries,
        )

    def bucket(self, name: str) -> Bucket:
        """Open a bucket; nothing is sent yet."""
        from lora_trainer.store import Bucket

        return Bucket(self.client(), name, self.endpoint)


def read_store_address(
    endpoint: str,
    *,
    http: bool = False,
    ca_file: str = "",
    environment: Mapping[str, str] = os.environ,
) -> StoreAddress:
    """Read the address from the command line, and the keys and the region from the environment.

    Args:
        endpoint: HOST:PORT, or a URL whose scheme selects HTTP or TLS.
        http: the store is served without TLS.

    Raises:
        UsageError: when an option or a variable is missing or wrong; the message names it.
    """
    if not endpoint:
        raise UsageError("name the store with --endpoint or LORA_STORE_ENDPOINT: HOST:PORT or a URL")
    scheme, separator, address = endpoint.partition("://")
    if not separator:
        scheme, address = ("http" if http else "https"), endpoint
    elif http and scheme == "https":
        raise UsageError(f"--endpoint {endpoint} uses TLS and --http does not: remove one of the two")
    address = address.rstrip("/")
    if scheme not in ("http", "https") or not address or "/" in address or "@" in address:
        raise UsageError(f"--endpoint {endpoint}: write HOST:PORT, http://HOST:PORT or https://HOST:PORT")
    keys = {}
    for name, variables in KEYS.items():
        keys[name] = next((environment[variable] for variable in variables if environment.get(variable)), "")
        if not keys[name]:
            raise UsageError(f"set {variables[0]} (or {variables[1]}) to a key for the store at {address}")
    region = environment.get("LORA_STORE_REGION") or environment.get("AWS_REGION") or ""
    return StoreAddress(address, scheme == "https", region=region, ca_file=ca_file, **keys)
