"""A malicious store, a malicious proxy in front of it, and malicious objects."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
from io import BytesIO

import pytest
from minio import Minio
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from lora_api.job import Training
from lora_api.keys import JobKeys, cached_caption, reuse_pointer
from lora_trainer.annotate.intake import fetch_image
from lora_trainer.annotate.loading import BadImageError
from lora_trainer.annotate.publish import find_published
from lora_trainer.demo import shared
from lora_trainer.demo.catalog import read_catalog
from lora_trainer.errors import BadDataError, UnavailableError
from lora_trainer.store import Bucket, Store, find_reusable
from tests.conftest import RunningStore

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
BOMB = gzip.compress(bytes(256 << 20))
"""256 MiB in 260 kB."""
ENTITIES = (
    '<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {c} "{f"&{before};" * 10}">' for before, c in itertools.pairwise("abcdefghi"))
    + "]>"
)


def page(*keys: str, more: bool = False, token: int = 0, prolog: str = "", size: str = "5") -> Response:
    """A page of a list of objects."""
    items = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00Z</LastModified><ETag>x</ETag><Size>{size}</Size></Contents>"
        for key in keys
    )
    following = f"<NextContinuationToken>{token}</NextContinuationToken>" if more else ""
    body = (
        f'<?xml version="1.0"?>{prolog}<ListBucketResult xmlns="{NAMESPACE}"><Name>datasets</Name>'
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{following}{items}</ListBucketResult>"
    )
    return Response(body, content_type="application/xml")


def error(body: bytes, status: int = 404) -> Response:
    return Response(body, status, content_type="application/xml")


@pytest.fixture
def bucket(httpserver: HTTPServer, running_store: RunningStore) -> Bucket:
    """Return a bucket of a store whose answers are scripted."""
    address = f"{httpserver.host}:{httpserver.port}"
    return Store(running_store.access.model_copy(update={"endpoint": address}), retries=0).input


ANSWERS = {
    "a redirect": lambda: Response(b"", 307, headers={"location": "/stolen"}),
    "a redirect of a GET": lambda: Response(b"", 303, headers={"location": "/stolen"}),
    "a page in another encoding": lambda: Response("gesperrt für Sie".encode("latin-1"), 403),
    "XML that is none": lambda: error(b"<html>"),
    "an error of entities": lambda: error(f"{ENTITIES}<Error><Code>&i;</Code></Error>".encode()),
    "an error without a code": lambda: error(b"<Error/>"),
    "a gzip bomb": lambda: Response(
        BOMB, 404, headers={"content-encoding": "gzip"}, content_type="application/xml"
    ),
}
LISTS = {
    "entities": lambda: page("&i;", prolog=ENTITIES),
    "a file of this machine": lambda: page(
        "&x;", prolog='<!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/hostname">]>'
    ),
    "a size of many digits": lambda: page("p/a", size="9" * 5000),
    "a gzip bomb": lambda: Response(BOMB, headers={"content-encoding": "gzip"}),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_hostile_answer_is_an_error_with_a_name(httpserver, bucket, name):
    paths: list[str] = []

    def handle(request: Request) -> Response:
        paths.append(request.path)
        return ANSWERS[name]() if request.path != "/stolen" else Response(b"metadata")

    httpserver.expect_request("/datasets/p/a").respond_with_handler(handle)
    httpserver.expect_request("/stolen").respond_with_handler(handle)
    tracemalloc.start()
    with pytest.raises(UnavailableError) as raised:
        bucket.get("p/a")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "metadata" not in str(raised.value)
    assert "/stolen" not in paths
    assert peak < 100 << 20, f"{peak >> 20} MiB"


@pytest.mark.parametrize("name", LISTS)
def test_a_hostile_list_is_an_error_with_a_name(httpserver, bucket, name):
    httpserver.expect_request("/datasets").respond_with_response(LISTS[name]())
    tracemalloc.start()
    with pytest.raises(UnavailableError):
        bucket.list("p/", 10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 << 20, f"{peak >> 20} MiB"


def test_a_list_has_only_keys_under_its_prefix(httpserver, bucket):
    answered = page("other/key", "", "p/../a", "p/b", size="-5")
    httpserver.expect_request("/datasets").respond_with_response(answered)
    assert [(item.key, item.bytes) for item in bucket.list("p/", 10)] == [("p/../a", 0), ("p/b", 0)]


@pytest.mark.parametrize(
    ("keys", "named"), [((), "pages"), (("p/a/",), "pages"), (("p/a/",) * 100, "markers")]
)
def test_an_endless_list_is_aborted(httpserver, bucket, monkeypatch, keys, named):
    monkeypatch.setattr("lora_trainer.store_http.MAX_PAGES", 20)
    monkeypatch.setattr("lora_trainer.store.MAX_MARKERS", 500)
    pages = itertools.count(1)
    httpserver.expect_request("/datasets").respond_with_handler(
        lambda _: page(*keys, more=True, token=next(pages))
    )
    with pytest.raises((UnavailableError, BadDataError), match=named):
        bucket.list("p/", 10)
    assert next(pages) < 25
    # the next list counts its own pages
    httpserver.clear()
    httpserver.expect_request("/datasets").respond_with_response(page("p/b"))
    assert len(bucket.list("p/", 10)) == 1


def test_a_store_cannot_choose_the_retry_interval(httpserver, running_store, monkeypatch):
    """A `Retry-After` of six hours is ignored."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    answer = Response(b"", 503, headers={"retry-after": "21600"})
    httpserver.expect_request("/datasets/p/a").respond_with_response(answer)
    access = running_store.access.model_copy(update={"endpoint": f"{httpserver.host}:{httpserver.port}"})
    with pytest.raises(UnavailableError, match="503"):
        Store(access, retries=3).input.get("p/a")
    assert len(httpserver.log) == 4
    assert sum(waited) < 60


def test_a_compressed_image_does_not_fill_the_memory(running_store, uid):
    """An uploader can declare an image as compressed. The listing then has its compressed size."""
    access = running_store.access
    client: Minio = running_store.store.input._client
    key = f"bomb-{uid}/a.png"
    client.put_object(
        access.input_bucket, key, BytesIO(BOMB), len(BOMB), metadata={"Content-Encoding": "gzip"}
    )
    (item,) = running_store.store.input.list(f"bomb-{uid}/", 10)
    assert item.bytes == len(BOMB)
    tracemalloc.start()
    with pytest.raises(BadImageError, match="larger than 64 MB once it is decompressed"):
        fetch_image(running_store.store.input, item, Training())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150 << 20, f"{peak >> 20} MiB"


def test_a_compressed_manifest_hides_no_other_adapter_and_stops_no_job(running_store, uid, monkeypatch):
    """The demo and later jobs treat a decompression bomb in the store as a missing object."""
    bucket = running_store.store.output
    keys = JobKeys(f"bombs-{uid}", "statue", uid)
    pointer = reuse_pointer(keys.namespace, "sha256:" + "a" * 64)
    cached = cached_caption(keys.namespace, "b" * 64)
    for key in (keys.manifest(1), pointer, cached, keys.checkpoint_manifest(5), keys.captions_manifest):
        compressed = {"Content-Encoding": "gzip"}
        bucket._client.put_object(bucket.name, key, BytesIO(BOMB), len(BOMB), metadata=compressed)
    monkeypatch.setattr(shared, "store", lambda: running_store.store)
    read = shared.read_once.__wrapped__
    listed = read_catalog(bucket, read)
    assert keys.namespace not in {manifest.namespace for manifest in listed.adapters}
    assert find_reusable(bucket, keys.namespace, "sha256:" + "a" * 64) is None
    assert find_published(bucket, keys) is None


def test_a_download_is_no_longer_than_its_manifest_says(running_store, uid, tmp_path):
    bucket = running_store.store.output
    bucket.put(f"{uid}/a", bytes(3 << 20))
    with pytest.raises(BadDataError, match="more than 100 bytes"):
        bucket.get_file(f"{uid}/a", tmp_path / "new" / "a", 100)
    assert list((tmp_path / "new").iterdir()) == []
