"""The object store: MinIO or any S3 service, through the `minio` client, with bounded retries.

This is the only module that uses the S3 client. Containers, the command `lora` and its local store use this module. Every
error of the client is mapped to a `StageError` in one place (`_map_errors`). Keys come from `lora_api.keys`. It is one
module because all requests share the retries and this mapping.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.credentials.providers import Provider
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from lora_api.keys import parse_manifest_key, reuse_pointer
from lora_api.manifest import FileEntry, Manifest, ReusePointer, sha256_hex
from lora_api.reasons import Reason
from lora_api.redact import register_secret
from lora_api.stages import StoreAccess

from .errors import (
    BadConfigurationError,
    BadDataError,
    BadSetupError,
    RefusedCredentialsError,
    UnavailableError,
)
from .store_http import BoundedPool

log = logging.getLogger(__name__)
T = TypeVar("T")

REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
"""S3 error codes for refused credentials or permissions."""
CHUNK = 1 << 20
"""Bytes that are read from a response at a time."""
MAX_OBJECT_BYTES = 64 << 20
"""Maximum size of an object that is read into memory. The size in a list does not bound it: whoever uploads an object can
give it a `Content-Encoding`, and the client decompresses it then."""
MAX_MARKERS = 10_000
"""Maximum number of folder markers in a list."""
RETRIES = 6
"""Retries of a request, about 30 seconds in total. After a longer outage the stage fails, and Kubernetes retries it."""
UNREADY_PAUSES = (1, 2, 4, 8, 8, 8)
"""Seconds between the tries of a request that something other than an S3 service answers: while a store starts, its proxy
or its own web server may answer for it."""
ROTATION_SECONDS = 120.0
"""How long a request is repeated whose credentials are refused although they worked before. The kubelet takes about a
minute to update the files of a Secret."""
ROTATION_PAUSE = 5.0
"""Seconds between these requests."""


class ObjectMissingError(KeyError):
    """No object has this key."""


class ObjectChangedError(ValueError):
    """The content of an object does not have the expected sha256."""

    def __init__(self, key: str, sha256: str) -> None:
        super().__init__(f"the sha256 of {key} is {sha256}")
        self.sha256 = sha256
        """The sha256 of the content, in hexadecimal digits."""


class ObjectTooLargeError(BadDataError):
    """An object is larger than what reads it allows."""


@dataclass(frozen=True)
class StoredObject:
    """An object as a list has it."""

    key: str
    bytes: int
    """Size of the object."""
    etag: str
    """ETag without quotes; empty for a file on this machine."""
    modified: datetime | None = None
    """Time of the last change; None where it is not known."""


class Bucket:
    """One bucket. Every method raises a `StageError` when the store refuses a request or cannot be reached."""

    def __init__(
        self, client: Minio, name: str, endpoint: str, retries: int = RETRIES, rotation_seconds: float = 0.0
    ) -> None:
        """
        Args:
            retries: number of retries of a request that something other than an S3 service answers.
            rotation_seconds: how long a request is repeated whose credentials are refused although they worked before.
                0 for credentials that do not change.
        """
        self._client = client
        self.name = name
        self.endpoint = endpoint
        self._pauses = UNREADY_PAUSES[:retries]
        self._rotation_seconds = rotation_seconds
        self._permitted: set[str] = set()
        """The kinds of requests that the store has permitted."""

    def uri(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def list(self, prefix: str, limit: int) -> list[StoredObject]:
        """List at most `limit` objects under a prefix, in the order of their keys, without folder markers."""

        def read() -> list[StoredObject]:
            objects: list[StoredObject] = []
            markers = 0
            try:
                for item in self._client.list_objects(self.name, prefix=prefix, recursive=True):
                    if item.object_name is None or item.object_name.endswith("/"):
                        markers += 1
                        if markers > MAX_MARKERS:
                            raise BadDataError(
                                f"more than {MAX_MARKERS} folder markers lie under {self.uri(prefix)}: remove them"
                            )
                        continue
                    etag = (item.etag or "").strip('"')
                    objects.append(
                        StoredObject(item.object_name, max(item.size or 0, 0), etag, item.last_modified)
                    )
                    if len(objects) >= limit:
                        break
            except (ValueError, ElementTree.ParseError) as error:
                # The client accepts any answer with HTTP 200, such as a proxy's page.
                raise InvalidResponseError(200, "not a list of objects", str(error)) from error
            # The client does not check that the store lists what was asked for.
            return [item for item in objects if item.key.startswith(prefix)]

        return self._call("list", prefix, read)

    def exists(self, key: str) -> bool:
        try:
            self._call("get", key, lambda: self._client.stat_object(self.name, key))
        except ObjectMissingError:
            return False
        return True

    def get(self, key: str, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """Read a whole object.

        Args:
            max_bytes: size of the largest object that is read into memory.

        Raises:
            ObjectMissingError: when no object has the key.
            ObjectTooLargeError: when the object is larger.
        """
        data = bytearray()
        for chunk in self._stream(key):
            data += chunk
            if len(data) > max_bytes:
                raise ObjectTooLargeError(f"{self.uri(key)} has more than {max_bytes} bytes")
        return bytes(data)

    def get_file(self, key: str, path: Path, max_bytes: int | None = None) -> None:
        """Download an object to a file. The file is created under its name only once it is complete.

        Args:
            max_bytes: size of the largest object that is downloaded, such as that of a manifest; None for no limit.

        Raises:
            ObjectMissingError: when no object has the key.
            ObjectTooLargeError: when the object is larger.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        with partial.open("wb") as out:
            for chunk in self._stream(key):
                out.write(chunk)
                if max_bytes is not None and out.tell() > max_bytes:
                    partial.unlink()
                    raise ObjectTooLargeError(f"{self.uri(key)} has more than {max_bytes} bytes")
        partial.replace(path)

    def get_verified_file(self, key: str, path: Path, sha256: str, max_bytes: int | None = None) -> None:
        """Download an object to a file, and keep the file only if it has the expected sha256.

        Args:
            sha256: in hexadecimal digits.
            max_bytes: see `get_file`.

        Raises:
            ObjectMissingError: when no object has the key.
            ObjectChangedError: when the content differs.
            ObjectTooLargeError: when the object is larger than `max_bytes`.
        """
        self.get_file(key, path, max_bytes)
        if (actual := file_sha256(path)) != sha256:
            path.unlink()
            raise ObjectChangedError(key, actual)

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> FileEntry:
        self._call(
            "put",
            key,
            lambda: self._client.put_object(self.name, key, BytesIO(data), len(data), content_type),
        )
        return FileEntry(key=key, bytes=len(data), sha256=sha256_hex(data))

    def put_file(self, key: str, path: Path, part_size: int = 0) -> FileEntry:
        """Upload a file.

        Args:
            part_size: bytes of each part; 0 to let the client choose. The ETag of an object that was uploaded in
                one part is the MD5 of the file.
        """
        self._call(
            "put", key, lambda: self._client.fput_object(self.name, key, str(path), part_size=part_size)
        )
        return FileEntry(key=key, bytes=path.stat().st_size, sha256=file_sha256(path))

    def remove(self, key: str) -> None:
        self._call("remove", key, lambda: self._client.remove_object(self.name, key))

    def holds(self, entry: FileEntry) -> bool:
        """Read an object back, and return whether its size and sha256 match a manifest's entry."""
        digest, size = hashlib.sha256(), 0
        try:
            for chunk in self._stream(entry.key):
                digest.update(chunk)
                size += len(chunk)
        except ObjectMissingError:
            return False
        return size == entry.bytes and digest.hexdigest() == entry.sha256

    def _stream(self, key: str) -> Iterator[bytes]:
        response = self._call("get", key, lambda: self._client.get_object(self.name, key))
        with self._map_errors(key):
            try:
                yield from response.stream(CHUNK)
            finally:
                response.close()
                response.release_conn()

    def _call(self, kind: str, key: str, request: Callable[[], T]) -> T:
        """Send a request, and repeat it where the next answer may be another one.

        That is while the store starts, so that something else answers, and after the credentials were replaced: the
        client reads their files for every request, and the kubelet updates these some time after the Secret.

        Args:
            kind: the kind of the request. Credentials that were permitted one kind may lack the right to another.
            key: the object's key.
            request: sends the request once.
        """
        pauses = iter(self._pauses)
        pause: float | None
        refused_at: float | None = None
        while True:
            try:
                with self._map_errors(key):
                    answer = request()
            except ObjectMissingError:
                self._permitted.add(kind)
                raise
            except UnavailableError as error:
                pause = next(pauses, None) if isinstance(error.__cause__, InvalidResponseError) else None
                if pause is None:
                    raise
                log.warning("%s; trying again in %d s", error, pause)
            except RefusedCredentialsError as error:
                now = time.monotonic()
                refused_at = refused_at or now
                if kind not in self._permitted or now - refused_at >= self._rotation_seconds:
                    raise
                pause = ROTATION_PAUSE
                log.warning("%s, which worked before; reading them again in %d s", error, pause)
            else:
                self._permitted.add(kind)
                return answer
            time.sleep(pause)

    @contextmanager
    def _map_errors(self, key: str) -> Iterator[None]:
        """Map the client's errors to stage errors whose messages name the endpoint and the bucket."""
        try:
            yield
        except S3Error as error:
            if error.code in ("NoSuchKey", "NoSuchObject"):
                raise ObjectMissingError(key) from None
            if error.code == "NoSuchBucket":
                raise BadSetupError(
                    f"the store at {self.endpoint} has no bucket {self.name!r}; create it, or correct the bucket's name"
                ) from None
            if error.code in REFUSED:
                raise RefusedCredentialsError(
                    f"the store at {self.endpoint} refused the credentials "
                    f"for bucket {self.name!r} ({error.code})"
                ) from None
            raise self._unavailable(error) from error
        except (UnicodeDecodeError, ElementTree.ParseError) as error:
            # The client decodes any error as UTF-8, and parses what claims to be XML.
            page = InvalidResponseError(0, "neither XML nor text", str(error))
            raise self._unavailable(page) from page
        except (ServerError, InvalidResponseError, urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
                raise  # an error of a local file, not of the store
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise BadSetupError(
                    f"the certificate of the store at {self.endpoint} is not trusted: "
                    "name its authority: in a profile by store.caConfigMap, on the command line by --ca-file"
                ) from None
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> UnavailableError:
        return UnavailableError(
            f"the store at {self.endpoint} cannot be used: {_reason(error)}", Reason.STORE_UNAVAILABLE
        )


class CredentialFiles(Provider):
    """The credentials in the files that a Secret is mounted as. They are read for every request."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def retrieve(self) -> Credentials:
        """Read the files.

        Raises:
            RefusedCredentialsError: when one is missing or empty.
        """
        return Credentials(
            read_credential(self._folder, "accessKey"), read_credential(self._folder, "secretKey")
        )


def connect(
    endpoint: str,
    credentials: Provider,
    *,
    secure: bool,
    region: str = "",
    ca_file: str = "",
    retries: int = RETRIES,
) -> Minio:
    """Build the S3 client. Nothing is sent yet.

    Args:
        endpoint: HOST:PORT.
        credentials: asked for the keys at every request.
        ca_file: PEM file of the service's certificate authority; empty for the public authorities.
        retries: number of retries of a request that fails because the store is absent or overloaded.

    Raises:
        BadConfigurationError: when the endpoint or the CA file cannot be used.
    """
    if ca_file and not Path(ca_file).is_file():
        raise BadConfigurationError(
            f"the store's CA file {ca_file} does not exist; a profile's caConfigMap needs a key ca.crt"
        )
    try:
        return Minio(
            endpoint,
            credentials=credentials,
            secure=secure,
            region=region or "us-east-1",  # without a region, the client would request it
            http_client=BoundedPool(ca_file, retries),
        )
    except (ValueError, OSError) as error:
        raise BadConfigurationError(f"the store {endpoint!r} cannot be used: {error}") from error


def list_buckets(client: Minio) -> list[str] | None:
    """List the buckets that the credentials may see; None when the store does not answer."""
    try:
        return [bucket.name for bucket in client.list_buckets()]
    except (MinioException, urllib3.exceptions.HTTPError):
        return None


class Store:
    """The two buckets of a profile: inputs of users and outputs of jobs."""

    def __init__(self, access: StoreAccess, retries: int = RETRIES) -> None:
        """Check the files of the credentials. Nothing is sent yet.

        Args:
            retries: number of retries of a request that fails because the store is absent or overloaded.

        Raises:
            RefusedCredentialsError: when a credential file is missing or empty.
            BadConfigurationError: when the endpoint or the CA file cannot be used.
        """
        credentials = CredentialFiles(access.credentials_dir)
        credentials.retrieve()
        client = connect(
            access.endpoint,
            credentials,
            secure=access.secure,
            region=access.region,
            ca_file=access.ca_file,
            retries=retries,
        )
        self.input = Bucket(client, access.input_bucket, access.endpoint, retries, ROTATION_SECONDS)
        self.output = Bucket(client, access.output_bucket, access.endpoint, retries, ROTATION_SECONDS)


def read_credential(folder: str, name: str) -> str:
    """Read one credential from the file that a Secret is mounted as."""
    path = Path(folder) / name
    try:
        value = path.read_text().strip()
    except OSError:
        value = ""
    if not value:
        raise RefusedCredentialsError(f"the Secret mounted at {folder} has no key {name!r}, or it is empty")
    register_secret(value)
    return value


def find_reusable(bucket: Bucket, namespace: str, input_hash: str) -> Manifest | None:
    """Read the manifest of an adapter that was trained in a namespace from the inputs with a hash.

    Returns:
        The manifest; None if there is none, if it belongs to another namespace, or if any of its files is not intact.
    """
    try:
        pointer = ReusePointer.model_validate_json(bucket.get(reuse_pointer(namespace, input_hash)))
        data = bucket.get(pointer.manifest_key)
    except (ObjectMissingError, ObjectTooLargeError, ValueError):
        return None
    # The pointer is stored under the namespace. The manifest that it names must belong to the same namespace.
    location = parse_manifest_key(pointer.manifest_key)
    if sha256_hex(data) != pointer.sha256 or location is None or location[0].namespace != namespace:
        return None
    return verified_manifest(bucket, data, pointer.manifest_key)


def verified_manifest(bucket: Bucket, data: bytes, key: str) -> Manifest | None:
    """Parse the manifest at a key and read its files back; None if the manifest is invalid or a file is not intact."""
    try:
        manifest = Manifest.model_validate_json(data)
        manifest.check(key)
    except ValueError:
        return None
    return manifest if all(bucket.holds(entry) for entry in manifest.files) else None


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    """Return the cause of an error, without urllib3's description of its pools and retries."""
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason:
        error = error.reason
    # A message of urllib3 begins with the connection: `HTTPConnection(host=..., port=...): Failed to ...`.
    return str(error).rpartition("): ")[2]
