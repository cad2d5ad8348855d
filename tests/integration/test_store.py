"""The store client against a real S3 server, and against one that misbehaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import urllib3
from pytest_httpserver import HTTPServer

from broken import cut_off
from conftest import RunningStore
from lora_api.manifest import FileEntry, Manifest, ReusePointer, canonical_json, sha256_hex
from lora_api.reasons import Reason
from lora_api.status import AdapterStatus
from lora_api.steps import StoreAccess
from lora_trainer.errors import (
    BadConfigurationError,
    BadSetupError,
    RefusedCredentialsError,
    UnavailableError,
)
from lora_trainer.store import ObjectMissingError, Store, StoredObject, find_reusable


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
    with pytest.raises(RefusedCredentialsError, match="refused the profile's credentials") as error:
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


def test_an_endpoint_that_is_none_is_a_bad_configuration(running_store):
    with pytest.raises(BadConfigurationError, match="store cannot be used"):
        changed(running_store, endpoint="http://with.a.path/x")
    with pytest.raises(BadConfigurationError, match=r"/nothing/here\.crt is not there"):
        changed(running_store, ca_file="/nothing/here.crt", secure=True)


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """How long the client would have waited between its tries."""
    waited: list[float] = []
    monkeypatch.setattr(urllib3.util.retry.time, "sleep", waited.append)
    return waited


def test_a_store_that_is_away_is_given_up_within_a_minute(running_store, root, pauses):
    store = changed(running_store, endpoint="127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9 cannot be used") as error:
        store.output.get(root + "x")
    assert error.value.reason is Reason.STORE_UNAVAILABLE
    assert 10 < sum(pauses) < 60


@pytest.fixture
def odd_server(httpserver: HTTPServer, running_store: RunningStore) -> tuple[HTTPServer, Store]:
    return httpserver, changed(running_store, endpoint=f"{httpserver.host}:{httpserver.port}")


def test_a_store_that_comes_back_is_waited_for(odd_server, pauses):
    server, store = odd_server
    for _ in range(3):
        server.expect_ordered_request("/loras/key").respond_with_data("busy", status=503)
    server.expect_ordered_request("/loras/key").respond_with_data(b"here it is")
    assert store.output.get("key") == b"here it is"
    assert len(pauses) >= 2


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


def published(running: RunningStore, root: str) -> tuple[Manifest, str]:
    bucket = running.store.output
    files = [bucket.put(f"{root}{name}", name.encode()) for name in ("adapter.safetensors", "preview.png")]
    adapter = AdapterStatus(
        uri=bucket.uri(files[0].key),
        sha256=files[0].sha256,
        bytes=files[0].bytes,
        format="diffusers",
        manifest_key=root + "manifest.json",
    )
    manifest = Manifest(
        namespace="n", name="j", uid="u", attempt=1, input_hash="sha256:00", adapter=adapter, files=files,
        steps=1, seed=0, first_loss=0.1, final_loss=0.1, versions={},
    )  # fmt: skip
    data = canonical_json(manifest.to_wire())
    bucket.put(root + "manifest.json", data)
    pointer = ReusePointer(manifest_key=root + "manifest.json", sha256=sha256_hex(data))
    bucket.put(root + "pointer.json", canonical_json(pointer.to_wire()))
    return manifest, root + "pointer.json"


def test_a_publication_is_found_while_every_byte_of_it_is_there(running_store, root):
    manifest, pointer = published(running_store, root)
    assert find_reusable(running_store.store.output, pointer) == manifest


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("preview.png", b"previev.png"),
        ("adapter.safetensors", b"adapter.safetensorsX"),
        ("manifest.json", b"{}"),
        ("pointer.json", b"not json"),
        ("pointer.json", json.dumps({"manifestKey": "elsewhere", "sha256": "0"}).encode()),
    ],
)
def test_a_publication_that_is_harmed_is_not_found(running_store, root, name, content):
    _, pointer = published(running_store, root)
    running_store.store.output.put(root + name, content)
    assert find_reusable(running_store.store.output, pointer) is None


@pytest.mark.parametrize("name", ["preview.png", "adapter.safetensors", "manifest.json", "pointer.json"])
def test_a_publication_with_a_part_missing_is_not_found(running_store, root, name):
    _, pointer = published(running_store, root)
    running_store.store.output.remove(root + name)
    assert find_reusable(running_store.store.output, pointer) is None


def test_a_certificate_of_an_unknown_authority_is_refused(running_store, root, pauses):
    """TLS is asked of a server that has none: nothing is sent in the clear instead."""
    store = changed(running_store, secure=True)
    with pytest.raises(UnavailableError, match="cannot be used"):
        store.output.get(root + "x")


def test_access_is_a_plain_model(running_store):
    assert StoreAccess.model_validate(running_store.access.to_wire()) == running_store.access
