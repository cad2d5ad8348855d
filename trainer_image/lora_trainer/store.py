"""The object store: MinIO or any S3 service, through the `minio` client, with bounded retries.

Nothing here decides a key; keys come from `lora_api.keys`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path

import certifi
import urllib3
from minio import Minio
from minio.error import InvalidResponseError, S3Error, ServerError

from lora_api.manifest import FileEntry, Manifest, ReusePointer, sha256_hex
from lora_api.reasons import Reason
from lora_api.steps import StoreAccess

from .errors import BadConfigurationError, BadSetupError, RefusedCredentialsError, UnavailableError

REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
CHUNK = 1 << 20
RETRIES = 6
"""About 30 seconds of patience in all: a longer outage is for the platform's retries."""


class ObjectMissingError(KeyError):
    """No object has this key."""


@dataclass(frozen=True)
class StoredObject:
    key: str
    bytes: int
    etag: str
    modified: datetime | None = None


class Bucket:
    """One bucket. Every method raises a `StepError` when the store refuses or cannot be reached."""

    def __init__(self, client: Minio, name: str, endpoint: str) -> None:
        self._client = client
        self.name = name
        self.endpoint = endpoint

    def uri(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def list(self, prefix: str, limit: int) -> list[StoredObject]:
        """At most `limit` objects under a prefix, in the store's (key) order; folder marks are left out."""
        found: list[StoredObject] = []
        with self._plainly(prefix):
            for item in self._client.list_objects(self.name, prefix=prefix, recursive=True):
                if item.object_name is None or item.object_name.endswith("/"):
                    continue
                etag = (item.etag or "").strip('"')
                found.append(StoredObject(item.object_name, item.size or 0, etag, item.last_modified))
                if len(found) >= limit:
                    break
        return found

    def exists(self, key: str) -> bool:
        try:
            with self._plainly(key):
                self._client.stat_object(self.name, key)
        except ObjectMissingError:
            return False
        return True

    def get(self, key: str) -> bytes:
        """A whole object. Raises ObjectMissingError where there is none."""
        return b"".join(self._stream(key))

    def get_file(self, key: str, path: Path) -> None:
        """Download to a file, which appears only once it is whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        with partial.open("wb") as out:
            for chunk in self._stream(key):
                out.write(chunk)
        partial.replace(path)

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> FileEntry:
        with self._plainly(key):
            self._client.put_object(self.name, key, BytesIO(data), len(data), content_type)
        return FileEntry(key=key, bytes=len(data), sha256=sha256_hex(data))

    def put_file(self, key: str, path: Path) -> FileEntry:
        with self._plainly(key):
            self._client.fput_object(self.name, key, str(path))
        return FileEntry(key=key, bytes=path.stat().st_size, sha256=file_sha256(path))

    def remove(self, key: str) -> None:
        with self._plainly(key):
            self._client.remove_object(self.name, key)

    def holds(self, entry: FileEntry) -> bool:
        """Read an object back and compare its every byte with what a manifest says of it."""
        digest, size = hashlib.sha256(), 0
        try:
            for chunk in self._stream(entry.key):
                digest.update(chunk)
                size += len(chunk)
        except ObjectMissingError:
            return False
        return size == entry.bytes and digest.hexdigest() == entry.sha256

    def _stream(self, key: str) -> Iterator[bytes]:
        with self._plainly(key):
            response = self._client.get_object(self.name, key)
            try:
                yield from response.stream(CHUNK)
            finally:
                response.close()
                response.release_conn()

    @contextmanager
    def _plainly(self, key: str) -> Iterator[None]:
        """Turn the client's errors into the step's, in words that name the endpoint and the bucket."""
        try:
            yield
        except S3Error as error:
            if error.code in ("NoSuchKey", "NoSuchObject"):
                raise ObjectMissingError(key) from None
            if error.code == "NoSuchBucket":
                raise BadSetupError(
                    f"the store at {self.endpoint} has no bucket {self.name!r}; create it or correct the profile"
                ) from None
            if error.code in REFUSED:
                raise RefusedCredentialsError(
                    f"the store at {self.endpoint} refused the profile's credentials "
                    f"for bucket {self.name!r} ({error.code})"
                ) from None
            raise self._unavailable(error) from error
        except (ServerError, InvalidResponseError, urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
                raise  # a local file's error, not the store's
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise BadSetupError(
                    f"the certificate of the store at {self.endpoint} is not trusted: "
                    "name a ConfigMap with its authority's ca.crt in the profile's store.caConfigMap"
                ) from None
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> UnavailableError:
        return UnavailableError(
            f"the store at {self.endpoint} cannot be used: {_plain_words(error)}", Reason.STORE_UNAVAILABLE
        )


class Store:
    """The two buckets of a profile: what customers bring and what jobs make."""

    def __init__(self, access: StoreAccess, retries: int = RETRIES) -> None:
        """Connect to nothing yet; credentials are read from files here.

        Args:
            retries: of each request that finds the store away.

        Raises:
            RefusedCredentialsError: when a credential file is missing or empty.
            BadConfigurationError: when the endpoint or the CA file cannot be used.
        """
        if access.ca_file and not Path(access.ca_file).is_file():
            raise BadConfigurationError(
                f"the store's CA file {access.ca_file} is not there; the profile's caConfigMap needs a key ca.crt"
            )
        try:
            client = Minio(
                access.endpoint,
                access_key=read_credential(access.credentials_dir, "accessKey"),
                secret_key=read_credential(access.credentials_dir, "secretKey"),
                secure=access.secure,
                region=access.region or "us-east-1",
                http_client=_http(access.ca_file, retries),
            )
        except (ValueError, OSError) as error:
            raise BadConfigurationError(f"the profile's store cannot be used: {error}") from error
        self.input = Bucket(client, access.input_bucket, access.endpoint)
        self.output = Bucket(client, access.output_bucket, access.endpoint)


def read_credential(folder: str, name: str) -> str:
    """One credential from the file that a Secret is mounted as."""
    path = Path(folder) / name
    try:
        value = path.read_text().strip()
    except OSError:
        value = ""
    if not value:
        raise RefusedCredentialsError(f"the Secret mounted at {folder} has no key {name!r}, or it is empty")
    return value


def find_reusable(bucket: Bucket, pointer_key: str) -> Manifest | None:
    """The manifest that a reuse pointer names, when everything in it still lies there unharmed."""
    try:
        pointer = ReusePointer.model_validate_json(bucket.get(pointer_key))
        data = bucket.get(pointer.manifest_key)
    except (ObjectMissingError, ValueError):
        return None
    if sha256_hex(data) != pointer.sha256:
        return None
    return verified_manifest(bucket, data)


def verified_manifest(bucket: Bucket, data: bytes) -> Manifest | None:
    """A manifest whose files were all read back with the right bytes; None when any was not."""
    try:
        manifest = Manifest.model_validate_json(data)
    except ValueError:
        return None
    return manifest if all(bucket.holds(entry) for entry in manifest.files) else None


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain_words(error: Exception) -> str:
    """What happened, without urllib3's account of its pools and retries."""
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason:
        error = error.reason
    return str(error).rpartition("): ")[2]


def _http(ca_file: str, retries: int) -> urllib3.PoolManager:
    return urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=5, read=30),
        retries=urllib3.Retry(
            total=retries,
            other=0,  # a certificate that is not trusted now will not be in a second
            backoff_factor=0.5,
            backoff_max=8,
            status_forcelist=(500, 502, 503, 504),
        ),
        cert_reqs="CERT_REQUIRED",
        ca_certs=ca_file or certifi.where(),
    )
