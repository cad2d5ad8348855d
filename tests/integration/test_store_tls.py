"""A store behind TLS with a private certificate authority."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lora_trainer.errors import BadSetupError
from lora_trainer.store import Store
from tests.conftest import RunningStore
from tests.support.certificates import make_certificate


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secured(running_store: RunningStore, certificate: Path) -> Iterator[str]:
    """Return the address of a TLS proxy in front of the store. It keeps the Host header, which is part of the signature."""

    class Proxy(BaseHTTPRequestHandler):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            upstream = http.client.HTTPConnection(running_store.seaweed.endpoint)
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            data = answer.read()
            upstream.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_profiles_authority_is_trusted(
    running_store: RunningStore, secured: str, certificate: Path, uid: str
) -> None:
    access = running_store.access.model_copy(
        update={"endpoint": secured, "secure": True, "ca_file": str(certificate / "ca.crt")}
    )
    bucket = Store(access).output
    entry = bucket.put(f"tls/{uid}", b"over TLS")
    assert bucket.get(f"tls/{uid}") == b"over TLS"
    assert bucket.holds(entry)
    assert running_store.store.output.get(f"tls/{uid}") == b"over TLS"


def test_another_authority_is_not_trusted(running_store: RunningStore, secured: str, uid: str) -> None:
    access = running_store.access.model_copy(update={"endpoint": secured, "secure": True})
    with pytest.raises(BadSetupError, match="caConfigMap"):
        Store(access).output.put(f"tls/{uid}", b"never sent")
