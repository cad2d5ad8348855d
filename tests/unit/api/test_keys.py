"""Keys are built and read in one place; a hostile key is not one of a job's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from lora_api.fields import ObjectKey, Sha256
from lora_api.keys import (
    JobKeys,
    cached_caption,
    is_below,
    namespace_root,
    parse_captions_key,
    parse_job_key,
    parse_manifest_key,
    reuse_pointer,
)

ROOT = Path(__file__).parents[3]
KEYS = JobKeys("ns", "job", "uid")
HOSTILE = [
    "",
    "/",
    "/etc/passwd",
    "ns/job/uid//home/user/.bashrc",
    "ns/job/uid/../other/manifest.json",
    "ns/job/uid/attempt-1/./x",
    "ns/job/uid/attempt-1/..",
    "ns/job/uid/",
    "a\\..\\b",
    "a\x00b",
    "a\u202eb",
    "a\x9bb",
    "x" * 1025,
    "é" * 600,
]


def test_what_is_built_is_read_again() -> None:
    assert parse_manifest_key(KEYS.manifest(12)) == (KEYS, 12)
    assert parse_captions_key(KEYS.captions) == KEYS
    assert parse_job_key(KEYS.image(3)) == (KEYS, "images/003.png")
    assert KEYS.checkpoint_step(KEYS.checkpoint_manifest(1_000_000)) == 1_000_000
    assert KEYS.image_name(KEYS.image_named("a b.png")) == "a b.png"


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_keys_are_refused(key: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(ObjectKey).validate_python(key)
    assert not KEYS.holds(key)
    assert parse_manifest_key(key) is None
    assert parse_captions_key(key) is None
    assert KEYS.checkpoint_step(key) is None


@pytest.mark.parametrize(
    "key",
    [
        "ns/.reuse/x/attempt-1/manifest.json",
        ".ns/job/uid/attempt-1/manifest.json",
        "ns/job/uid/attempt-0/manifest.json",
        "ns/job/uid/attempt-x/manifest.json",
        "ns/job/uid/attempt-1/deep/manifest.json",
        "ns/job/attempt-1/manifest.json",
    ],
)
def test_other_keys_are_not_manifests(key: str) -> None:
    assert parse_manifest_key(key) is None


def test_a_job_does_not_hold_what_only_begins_alike() -> None:
    assert not JobKeys("ns", "job", "u").holds("ns/job/u2/x")
    assert not is_below("ns2/x", "ns")
    assert KEYS.holds("ns/job/uid/attempt-1/x..y")


@pytest.mark.parametrize("digest", ["", "a" * 63, "A" * 64, "a" * 64 + "\n", "../" + "a" * 61])
def test_a_digest_is_64_hexadecimal_digits(digest: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Sha256).validate_python(digest)


@given(st.text(max_size=40))
def test_a_key_that_is_accepted_stays_below_the_folder_that_it_is_joined_to(key: str) -> None:
    try:
        TypeAdapter(ObjectKey).validate_python(key)
    except ValidationError:
        return
    assert is_below(f"folder/{key}", "folder/")


def test_the_example_s3_policy_keeps_a_namespace_to_its_own_prefix() -> None:
    policy = json.loads((ROOT / "examples/s3-policy/studio.json").read_text())
    statements = {statement["Sid"]: statement for statement in policy["Statement"]}
    (writable,) = statements["WriteOwnResults"]["Resource"]
    prefix = writable.removeprefix("arn:aws:s3:::loras/").removesuffix("*")
    assert prefix == namespace_root("studio")
    keys = JobKeys("studio", "statue", "uid")
    for key in (keys.manifest(1), reuse_pointer("studio", "sha256:00"), cached_caption("studio", "00")):
        assert key.startswith(prefix)
    assert all(statement["Effect"] == "Allow" for statement in statements.values())
