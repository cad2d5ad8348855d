"""Pages of other origins have no access to the demo in the same browser."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
import yaml

from tests.support.demo_server import serve

EVIL = "http://evil.example"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a page whose store does not exist."""
    folder: Path = tmp_path_factory.mktemp("page")
    profile = {"store": {"endpoint": "127.0.0.1:9", "secure": False}, "models": {}}
    (folder / "profiles.yaml").write_text(yaml.safe_dump({"profiles": {"default": profile}}))
    with serve({"LORA_PROFILES": str(folder / "profiles.yaml"), "LORA_STORE_SECRET": str(folder)}) as url:
        yield url


def handshake(url: str, origin: str, host: str = "") -> int:
    """Open the page's WebSocket as a browser does for a page of this origin; return the HTTP status."""
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        lines = [
            "GET /_stcore/stream HTTP/1.1",
            f"Host: {host or address.netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Version: 13",
            f"Origin: {origin}",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return int(connection.recv(4096).split()[1])


def test_only_the_page_itself_opens_a_session(url: str) -> None:
    assert handshake(url, url) == 101
    assert handshake(url, EVIL) == 403
    assert handshake(url, f"{EVIL}:{urlsplit(url).port}") == 403


def test_a_name_that_resolves_to_this_machine_opens_no_session(url: str) -> None:
    """After DNS rebinding, the other page has the origin of the demo."""
    port = urlsplit(url).port
    assert handshake(url, f"{EVIL}:{port}", host=f"{urlsplit(EVIL).netloc}:{port}") == 403
    assert handshake(url, f"http://localhost:{port}", host=f"localhost:{port}") == 101


def test_an_upload_needs_the_pages_own_token(url: str) -> None:
    upload = Request(
        f"{url}/_stcore/upload_file/session/file",
        method="PUT",
        data=b"x",
        headers={"Origin": EVIL, "Content-Type": "multipart/form-data; boundary=x"},
    )
    with pytest.raises(HTTPError) as refused:
        urlopen(upload, timeout=30)
    assert refused.value.code == 403
    assert "xsrf" in (refused.value.reason + refused.value.read().decode()).lower()


def test_no_answer_may_be_read_by_another_origin(url: str) -> None:
    with urlopen(Request(f"{url}/_stcore/health", headers={"Origin": EVIL}), timeout=30) as answer:
        assert answer.headers.get("Access-Control-Allow-Origin") is None
