"""Names of jobs and stores on the command line."""

from __future__ import annotations

import pytest

from lora_cli.errors import UsageError
from lora_cli.references import JobReference, require_name
from lora_cli.store_access import read_store_address

KEYS = {"LORA_STORE_ACCESS_KEY": "a", "AWS_SECRET_ACCESS_KEY": "b"}


@pytest.mark.parametrize(
    ("text", "namespace", "expected"),
    [
        ("statue", "", JobReference("statue")),
        ("statue", "studio", JobReference("statue", "studio")),
        ("studio/statue", "", JobReference("statue", "studio")),
        ("studio/statue", "studio", JobReference("statue", "studio")),
    ],
)
def test_a_job_is_named_in_two_ways(text: str, namespace: str, expected: JobReference) -> None:
    assert JobReference.parse(text, namespace) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "a/",
        "/a",
        "a/b/c",
        "--server=x",
        "team/--server=x",
        "../x",
        "a/..",
        "X_y",
        "a b",
        "a\n",
        "é",
        "a" * 254,
    ],
)
def test_a_name_that_kubernetes_would_refuse_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        JobReference.parse(text)
    with pytest.raises(UsageError):
        JobReference.parse("statue", text or "X")


def test_two_namespaces_for_one_job_are_refused() -> None:
    with pytest.raises(UsageError, match="remove one of the two"):
        JobReference.parse("studio/statue", "other")


def test_a_local_path_cannot_be_named() -> None:
    with pytest.raises(UsageError):
        require_name("../../x")


@pytest.mark.parametrize(
    ("endpoint", "http", "expected"),
    [
        ("minio:9000", False, ("minio:9000", True)),
        ("minio:9000", True, ("minio:9000", False)),
        ("http://minio:9000", False, ("minio:9000", False)),
        ("http://minio:9000/", True, ("minio:9000", False)),
        ("https://s3.example.com", False, ("s3.example.com", True)),
    ],
)
def test_a_store_is_named_as_an_address_or_a_url(
    endpoint: str, http: bool, expected: tuple[str, bool]
) -> None:
    address = read_store_address(endpoint, http=http, environment=KEYS)
    assert (address.endpoint, address.secure) == expected
    assert (address.access_key, address.secret_key) == ("a", "b")
    assert "'b'" not in repr(address)


@pytest.mark.parametrize("endpoint", ["", "http://", "ftp://x", "https://user@x", "http://x/bucket"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        read_store_address(endpoint, environment=KEYS)


def test_contradicting_words_about_tls_are_refused() -> None:
    with pytest.raises(UsageError, match="remove one of the two"):
        read_store_address("https://x", http=True, environment=KEYS)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UsageError, match="LORA_STORE_SECRET_KEY"):
        read_store_address("x:1", environment={"LORA_STORE_ACCESS_KEY": "a"})
