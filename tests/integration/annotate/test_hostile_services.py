"""A malicious language-model service, through the whole stage with real sockets."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import threading
import tracemalloc
from contextlib import suppress
from urllib.parse import quote

import pytest
from werkzeug import Response

from lora_api.reasons import Reason
from tests.support.services import completion, json_response

from .test_services import CAPTION, run_with

__all__ = ["run_with"]

BOMB = gzip.compress(b'{"choices": "' + b" " * (1 << 28))
"""256 MiB in 260 kB."""


def endless() -> Response:
    return Response((b" " * 65536 for _ in range(1 << 20)), content_type="application/json")


ANSWERS = {
    "a gzip bomb": lambda: Response(
        BOMB, headers={"content-encoding": "gzip"}, content_type="application/json"
    ),
    "a gzip bomb in an error": lambda: Response(BOMB, 500, headers={"content-encoding": "gzip"}),
    "an endless answer": endless,
    "deep JSON": lambda: Response(b"[" * 2_000_000, content_type="application/json"),
    "deep JSON in an error": lambda: Response(b'{"error":' * 300_000, 400, content_type="application/json"),
    "a number of many digits": lambda: Response(b"1" * 100_000, content_type="application/json"),
    "NaN as a pause": lambda: Response(b"{}", 503, headers={"retry-after": "nan"}),
    "a pause of ages": lambda: Response(b"{}", 503, headers={"retry-after": "1e308"}),
    "a pause until a year of many digits": lambda: Response(
        b"{}", 503, headers={"retry-after": f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"}
    ),
    "a code of many digits": lambda: json_response({"error": {"message": "x", "code": "4" * 5000}}, 400),
    "a place that is a number": lambda: json_response({"detail": [{"loc": 5, "msg": "x"}]}, 422),
    "a megabyte of codes": lambda: json_response(
        {"error": {"message": "x", "type": "model " * 300_000}}, 400
    ),
    "no encoding of text": lambda: Response(b"\xff{}", 400, content_type="application/json; charset=hex"),
    "an encoding that takes ages": lambda: Response(
        b"a" * 1_000_000 + b"\xff-" + b"b9" * 500_000, content_type="text/plain; charset=punycode"
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_hostile_answer_is_an_error_with_a_name_and_takes_little_memory(run_with, name):
    tracemalloc.start()
    _, _, code, result = run_with(lambda body, number: ANSWERS[name](), retrySeconds=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert code != 0
    assert result.reason not in (Reason.INTERNAL_ERROR, None), result.message
    assert "LLM" in result.message
    assert peak < 100 << 20, f"{peak >> 20} MiB"


REPLIES = {
    "reasoning that never ends": "<think>" * 28_000,
    "tags that never end": "<think " * 28_000,
    "a field of quotation marks": json.dumps({"framing": "\u201c" * 190_000}, ensure_ascii=False),
    "a field of brackets": '{"framing": ' + "[" * 700 + '"close"' + "]" * 700 + "}",
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_hostile_reply_is_refused(run_with, name):
    """The stage would recurse too deeply or search for minutes without limits."""
    _, _, code, result = run_with(lambda *_: json_response(completion(REPLIES[name])))
    assert (code, result.reason) == (78, Reason.CONFIGURATION_INVALID)
    assert "no reply of the model 'm' can be used" in result.message


@pytest.mark.parametrize("encode", [quote, lambda key: base64.b64encode(key.encode()).decode()])
def test_the_key_that_a_service_echoes_in_another_form_is_removed(run_with, tmp_path, encode):
    key = "own/Key+of?the=gateway"
    (tmp_path / "llm-secret").mkdir()
    (tmp_path / "llm-secret" / "apiKey").write_text(key)
    _, _, code, result = run_with(
        lambda *_: json_response({"error": {"message": f"no such user: {encode(key)}"}}, 400)
    )
    assert code != 0
    assert "no such user: [redacted]" in result.message


def test_a_compressed_answer_that_was_not_requested_is_read(run_with):
    body = gzip.compress(json.dumps(completion()).encode())
    answer = Response(body, headers={"content-encoding": "gzip"}, content_type="application/json")
    job, service, code, result = run_with(lambda *_: answer)
    assert code == 0, result.message
    assert {row["text"] for row in job.captions()} == {CAPTION}
    assert {headers["Accept-Encoding"] for headers in service.headers} == {"identity"}


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_redirect_takes_neither_key_nor_image_to_another_host(run_with, http_server, status, provider):
    """Anthropic's key is in a header that the HTTP client sends on to any host."""
    taken: list[bytes] = []
    with socket.create_server(("127.0.0.2", 0)) as listener:
        address = f"http://127.0.0.2:{listener.getsockname()[1]}/steal"

        def steal() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        taken.append(connection.recv(65536))
                        connection.sendall(b"HTTP/1.0 404 Not Found\r\n\r\n")

        threading.Thread(target=steal, daemon=True).start()
        answer = json_response({}, status, location=address)
        path = "/v1" if provider == "openai" else "/"
        _, _, code, result = run_with(lambda *_: answer, provider=provider, path=path, retrySeconds=1)
    assert code != 0
    assert "which is not followed" in result.message
    assert taken == []


@pytest.mark.parametrize(
    ("status", "target"),
    [
        (301, "http://metadata.google.internal/computeMetadata/v1/"),
        (303, "/latest/meta-data/"),
        (307, "http://169.254.169.254/latest/meta-data/iam/security-credentials/"),
        (308, "http://[fe80::1]/"),
        (307, "http://[::ffff:169.254.169.254]/"),
    ],
)
def test_a_redirect_to_metadata_is_not_followed(run_with, status, target):
    _, service, code, result = run_with(lambda *_: json_response({}, status, location=target))
    assert (code, result.reason) == (78, Reason.CONFIGURATION_INVALID)
    assert f"(HTTP {status}), which is not followed" in result.message
    assert len(service.requests) == 1
