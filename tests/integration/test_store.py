"""The store client with a real S3 server and with a faulty one."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
import urllib3
from PIL import Image
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from lora_api.keys import JobKeys, reuse_pointer
from lora_api.manifest import FileEntry, Manifest, ReusePointer, canonical_json, sha256_hex
from lora_api.reasons import Reason
from lora_api.stages import StoreAccess
from lora_api.status import AdapterStatus
from lora_trainer.errors import (
    BadConfigurationError,
    BadSetupError,
    RefusedCredentialsError,
    UnavailableError,
)
from lora_trainer.store import ObjectMissingError, Store, StoredObject, find_reusable
from lora_trainer.train.data.class_images import stored_class_image
from tests.conftest import RunningStore
from tests.support.broken import cut_off


@pytest.fixture
def root(uid: str) -> str:
    return f"store-test/{uid}/"


def changed(running: RunningStore, **fields: object) -> Store:
    return Store(running.access.model_copy(update=fields))


def test_what_is_put_is_read_back(running_store, root, tmp_path):
    bucket = running_store.store.output
    data = bytes(range(256)) * 9000
    entry = bucket.put(root + "a/x.bin", data)
    assert (entry.bytes, entry.sha256) == (len(data), sha256_hex(data))
    assert bucket.get(entry.key) == data
    assert bucket.exists(entry.key)
    assert bucket.holds(entry)

    path = tmp_path / "down" / "x.bin"
    bucket.get_file(entry.key, path)
    assert path.read_bytes() == data
    assert bucket.put_file(root + "a/y.bin", path).sha256 == entry.sha256
    assert [item.key for item in bucket.list(root, 10)] == [root + "a/x.bin", root + "a/y.bin"]
    assert [item.bytes for item in bucket.list(root, 10)] == [len(data)] * 2

    bucket.remove(entry.key)
    assert not bucket.exists(entry.key)
    assert not bucket.holds(entry)
    with pytest.raises(ObjectMissingError):
        bucket.get(entry.key)


def test_a_listing_stops_at_its_limit_and_names_an_etag_that_follows_the_content(running_store, root):
    bucket = running_store.store.input
    for index in range(5):
        bucket.put(f"{root}{index}", b"x")
    assert len(bucket.list(root, 3)) == 3
    before = bucket.list(root, 1)
    bucket.put(f"{root}0", b"y")
    after = bucket.list(root, 1)
    assert isinstance(before[0], StoredObject)
    assert before[0].etag != after[0].etag
    assert bucket.list("nothing/here/", 10) == []


def test_one_flipped_bit_is_noticed(running_store, root):
    bucket = running_store.store.output
    entry = bucket.put(root + "adapter", b"weights")
    bucket.put(root + "adapter", b"veights")
    assert not bucket.holds(entry)


@pytest.mark.parametrize("name", ["accessKey", "secretKey"])
def test_wrong_credentials_are_named_at_once(running_store, root, name):
    (Path(running_store.access.credentials_dir) / name).write_text("wrong")
    store = Store(running_store.access)
    with pytest.raises(RefusedCredentialsError, match="refused the credentials") as error:
        store.output.put(root + "x", b"x")
    assert error.value.reason is Reason.CREDENTIALS_REFUSED


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_missing_or_empty_credential_is_named(running_store, content):
    path = Path(running_store.access.credentials_dir) / "secretKey"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(RefusedCredentialsError, match="has no key 'secretKey', or it is empty"):
        Store(running_store.access)


def test_a_missing_bucket_is_named(running_store, root):
    store = changed(running_store, output_bucket="no-such-bucket")
    for attempt in (
        lambda: store.output.put(root + "x", b"x"),
        lambda: store.output.get(root + "x"),
        lambda: store.output.list(root, 1),
    ):
        with pytest.raises(BadSetupError, match="no bucket 'no-such-bucket'"):
            attempt()


def test_an_invalid_endpoint_is_a_configuration_error(running_store):
    with pytest.raises(BadConfigurationError, match=r"store .* cannot be used"):
        changed(running_store, endpoint="http://with.a.path/x")
    with pytest.raises(BadConfigurationError, match=r"/nothing/here\.crt does not exist"):
        changed(running_store, ca_file="/nothing/here.crt", secure=True)


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Record the seconds that the client waits between attempts, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(urllib3.util.retry.time, "sleep", waited.append)
    return waited


def test_an_unreachable_store_fails_within_a_minute(running_store, root, pauses):
    store = changed(running_store, endpoint="127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9 cannot be used") as error:
        store.output.get(root + "x")
    assert error.value.reason is Reason.STORE_UNAVAILABLE
    assert 10 < sum(pauses) < 60


@pytest.fixture
def odd_server(httpserver: HTTPServer, running_store: RunningStore) -> tuple[HTTPServer, Store]:
    return httpserver, changed(running_store, endpoint=f"{httpserver.host}:{httpserver.port}")


def test_a_store_that_returns_is_waited_for(odd_server, pauses):
    server, store = odd_server
    for _ in range(3):
        server.expect_ordered_request("/loras/key").respond_with_data("busy", status=503)
    server.expect_ordered_request("/loras/key").respond_with_data(b"here it is")
    assert store.output.get("key") == b"here it is"
    assert len(pauses) >= 2


def read_slowly(listener: socket.socket, first: float, pause: float, received: list[int]) -> None:
    """Accept connections, and read the body of one upload from each after `first` seconds, with a pause for each 2 MiB."""
    with suppress(OSError):  # when the test closes the listener
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(1)
                left = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1])
                received.append(0)
                threading.Event().wait(first)
                while left:
                    threading.Event().wait(pause)
                    piece = min(left, 2 * 2**20)
                    while piece and (data := connection.recv(piece)):
                        received[-1] += len(data)
                        piece -= len(data)
                        left -= len(data)
                connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "0"\r\nContent-Length: 0\r\n\r\n')


@pytest.mark.parametrize(("first", "pause", "connect", "answer"), [(1.5, 0, 0.3, 9), (0, 0.1, 2, 2)])
def test_a_store_that_reads_slowly_is_waited_for(
    running_store, pauses, monkeypatch, tmp_path, first, pause, connect, answer
):
    """A pause may be as long as the read timeout, and the whole upload longer."""
    monkeypatch.setattr("lora_trainer.store_http.CONNECT_SECONDS", connect)
    monkeypatch.setattr("lora_trainer.store_http.ANSWER_SECONDS", answer)
    path, received = tmp_path / "large", list[int]()
    path.write_bytes(bytes(96 * 2**20))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        host, port = listener.getsockname()
        threading.Thread(target=read_slowly, args=(listener, first, pause, received), daemon=True).start()
        changed(running_store, endpoint=f"{host}:{port}").output.put_file("key", path, part_size=128 * 2**20)
    assert received == [96 * 2**20]


@pytest.mark.parametrize(
    ("status", "kind"), [(404, ""), (404, "text/html"), (200, "text/html"), (302, "text/plain")]
)
def test_a_proxy_that_answers_for_a_starting_store_is_waited_out(odd_server, pauses, status, kind):
    """A 404 without an S3 error code says nothing about the object."""
    server, store = odd_server
    for _ in range(3):
        server.expect_ordered_request("/loras").respond_with_data(
            "<h1>not yet</h1>" if kind else "", status=status, content_type=kind or "application/xml"
        )
    listing = (
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>loras</Name>'
        "<IsTruncated>false</IsTruncated></ListBucketResult>"
    )
    server.expect_ordered_request("/loras").respond_with_data(listing, content_type="application/xml")
    assert store.output.list("x/", 10) == []
    assert pauses[:3] == [1, 2, 4]


def test_an_address_without_a_store_fails_within_a_minute(odd_server, pauses):
    server, store = odd_server
    server.expect_request("/loras/key").respond_with_data("not found", status=404)
    with pytest.raises(UnavailableError, match="cannot be used") as error:
        store.output.get("key")
    assert error.value.reason is Reason.STORE_UNAVAILABLE
    assert 10 < sum(pauses) < 60


def answering_to(key: str) -> Callable[[Request], Response]:
    """Return the answers of a store that accepts one access key."""

    def answer(request: Request) -> Response:
        if f"Credential={key}/" in request.headers.get("Authorization", ""):
            return Response(b"here it is", content_type="application/octet-stream")
        words = (
            "<Error><Code>InvalidAccessKeyId</Code><Message>The access key does not exist.</Message></Error>"
        )
        return Response(words, status=403, content_type="application/xml")

    return answer


def test_a_key_that_is_rotated_is_read_from_its_files_again(odd_server, running_store, monkeypatch):
    server, store = odd_server
    old = (Path(running_store.access.credentials_dir) / "accessKey").read_text()
    server.expect_oneshot_request("/loras/key").respond_with_handler(answering_to(old))
    assert store.output.get("key") == b"here it is"
    server.expect_request("/loras/key").respond_with_handler(answering_to("the-new-key"))
    waited: list[float] = []

    def rotate(seconds: float) -> None:
        """Update the files in the third pause, the first one incompletely, as the kubelet may do."""
        waited.append(seconds)
        name = {2: "", 3: "the-new-key"}.get(len(waited))
        if name is not None:
            (Path(running_store.access.credentials_dir) / "accessKey").write_text(name)

    monkeypatch.setattr("lora_trainer.store.time.sleep", rotate)
    assert store.output.get("key") == b"here it is"
    assert len(waited) == 3


def test_a_key_that_stays_refused_ends_after_two_minutes(odd_server, running_store, monkeypatch):
    server, store = odd_server
    old = (Path(running_store.access.credentials_dir) / "accessKey").read_text()
    server.expect_oneshot_request("/loras/key").respond_with_handler(answering_to(old))
    store.output.get("key")
    server.expect_request("/loras/key").respond_with_handler(answering_to("another"))
    server.expect_request("/loras/other", method="PUT").respond_with_handler(answering_to("another"))
    clock = [0.0]
    monkeypatch.setattr("lora_trainer.store.time.monotonic", lambda: clock[0] + 1)
    monkeypatch.setattr("lora_trainer.store.time.sleep", lambda seconds: clock.append(clock.pop() + seconds))
    with pytest.raises(RefusedCredentialsError, match="InvalidAccessKeyId"):
        store.output.get("key")
    assert 120 <= clock[0] <= 130
    with pytest.raises(RefusedCredentialsError):
        store.output.put("other", b"x")
    assert clock[0] <= 130, "a right that was never there is not waited for"


@pytest.mark.parametrize("reset", [False, True])
def test_a_download_that_is_cut_off_leaves_no_file(odd_server, tmp_path, reset):
    server, store = odd_server
    server.expect_request("/loras/key").respond_with_handler(lambda request: cut_off(request, reset=reset))
    path = tmp_path / "weights"
    with pytest.raises(UnavailableError):
        store.output.get_file("key", path)
    assert not path.exists()
    entry = FileEntry(key="key", bytes=4, sha256=sha256_hex(b"half"))
    with pytest.raises(UnavailableError):
        store.output.holds(entry)


def test_a_local_disks_error_is_not_the_stores(running_store, root, tmp_path):
    entry = running_store.store.output.put(root + "x", b"x")
    (tmp_path / "x.part").mkdir()
    with pytest.raises(IsADirectoryError):
        running_store.store.output.get_file(entry.key, tmp_path / "x")


IDENTITY = "sha256:" + "0" * 64


def published(running: RunningStore, root: str, **changes: object) -> tuple[Manifest, JobKeys]:
    """Publish an adapter in the namespace with the name of the test's folder."""
    bucket = running.store.output
    keys = JobKeys(root.strip("/").replace("/", "-"), "j", "u")
    names = ("adapter.safetensors", "preview.png")
    files = [bucket.put(f"{keys.attempt(1)}{name}", name.encode()) for name in names]
    adapter = AdapterStatus(
        uri=bucket.uri(files[0].key),
        sha256=files[0].sha256,
        bytes=files[0].bytes,
        format="diffusers",
        manifest_key=keys.manifest(1),
    )
    manifest = Manifest(
        namespace=keys.namespace, name="j", uid="u", attempt=1, input_hash=IDENTITY, adapter=adapter,
        files=files, steps=1, seed=0, first_loss=0.1, final_loss=0.1, versions={},
    ).model_copy(update=changes)  # fmt: skip
    data = canonical_json(manifest.to_wire())
    bucket.put(keys.manifest(1), data)
    pointer = ReusePointer(manifest_key=keys.manifest(1), sha256=sha256_hex(data))
    bucket.put(reuse_pointer(keys.namespace, IDENTITY), canonical_json(pointer.to_wire()))
    return manifest, keys


def place(keys: JobKeys, name: str) -> str:
    return reuse_pointer(keys.namespace, IDENTITY) if name == "pointer" else f"{keys.attempt(1)}{name}"


def test_a_publication_is_found_while_it_is_complete(running_store, root):
    manifest, keys = published(running_store, root)
    assert find_reusable(running_store.store.output, keys.namespace, IDENTITY) == manifest


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("preview.png", b"previev.png"),
        ("adapter.safetensors", b"adapter.safetensorsX"),
        ("manifest.json", b"{}"),
        ("manifest.json", b"[" * 900_000),
        ("pointer", b"not json"),
        ("pointer", b"[" * 900_000),
        ("pointer", json.dumps({"manifestKey": "elsewhere", "sha256": "0"}).encode()),
    ],
)
def test_a_damaged_publication_is_not_found(running_store, root, name, content):
    _, keys = published(running_store, root)
    running_store.store.output.put(place(keys, name), content)
    assert find_reusable(running_store.store.output, keys.namespace, IDENTITY) is None


@pytest.mark.parametrize("name", ["preview.png", "adapter.safetensors", "manifest.json", "pointer"])
def test_a_publication_with_a_part_missing_is_not_found(running_store, root, name):
    _, keys = published(running_store, root)
    running_store.store.output.remove(place(keys, name))
    assert find_reusable(running_store.store.output, keys.namespace, IDENTITY) is None


@pytest.mark.parametrize(
    "change", [{"files": []}, {"namespace": "victim"}, {"uid": "another"}, {"attempt": 2}]
)
def test_a_forged_manifest_is_not_reused(running_store, root, change):
    _, keys = published(running_store, root, **change)
    assert find_reusable(running_store.store.output, keys.namespace, IDENTITY) is None


def test_a_pointer_to_another_content_of_the_manifest_is_not_followed(running_store, root):
    bucket = running_store.store.output
    _, keys = published(running_store, root)
    forged = ReusePointer(manifest_key=keys.manifest(1), sha256="0" * 64)
    bucket.put(place(keys, "pointer"), canonical_json(forged.to_wire()))
    assert find_reusable(bucket, keys.namespace, IDENTITY) is None


def test_a_pointer_into_another_namespace_is_not_followed(running_store, root):
    bucket = running_store.store.output
    _, victim = published(running_store, f"victim-{root}")
    own = root.strip("/").replace("/", "-")
    bucket.put(reuse_pointer(own, IDENTITY), bucket.get(reuse_pointer(victim.namespace, IDENTITY)))
    assert find_reusable(bucket, victim.namespace, IDENTITY) is not None
    assert find_reusable(bucket, own, IDENTITY) is None


def png(mode: str, side: int) -> bytes:
    out = BytesIO()
    Image.new(mode, (side, side)).save(out, "png")
    return out.getvalue()


def test_only_images_that_the_generator_could_have_made_are_taken_as_class_images(running_store, root):
    bucket = running_store.store.output
    good = png("RGB", 64)
    assert stored_class_image(bucket, f"{root}missing.png", 64) is None
    for data in (b"\x89PNG", png("RGBA", 64), png("RGB", 4096), good[:-20], b"<svg/>", b""):
        bucket.put(f"{root}00000.png", data)
        assert stored_class_image(bucket, f"{root}00000.png", 64) is None
    bucket.put(f"{root}00000.png", good)
    assert stored_class_image(bucket, f"{root}00000.png", 64) == good


def test_a_certificate_of_an_unknown_authority_is_refused(running_store, root, pauses):
    """The server has no TLS. The client does not fall back to plain HTTP."""
    store = changed(running_store, secure=True)
    with pytest.raises(UnavailableError, match="cannot be used"):
        store.output.get(root + "x")


def test_access_is_a_plain_model(running_store):
    assert StoreAccess.model_validate(running_store.access.to_wire()) == running_store.access
