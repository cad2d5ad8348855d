"""Secrets do not leave a process, whoever repeats them."""

from __future__ import annotations

import base64
import logging
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_api import redact as redact_module
from lora_api.log_lines import RedactingFormatter
from lora_api.reasons import Reason
from lora_api.redact import MASK, redact, register_secret
from lora_api.stages import Outcome, StageResult, decode_result, encode_result
from lora_api.status import Condition, Failure
from lora_trainer.store import read_credential

SECRET = "s3cr3t/key+with=signs"


@pytest.mark.parametrize(
    "spelling",
    [
        SECRET,
        quote(SECRET, safe=""),
        quote(SECRET),
        quote(SECRET, safe="").lower(),
        SECRET.replace("/", "\\/"),
        *(base64.b64encode(f"{'x' * before}{SECRET}:y".encode()).decode() for before in range(3)),
        base64.urlsafe_b64encode(f"user:{SECRET}".encode()).decode(),
        base64.b64encode(SECRET.encode()).decode(),
        SECRET + "\n" + SECRET,
        f"invalid key: {SECRET}!",
    ],
)
def test_a_registered_secret_is_removed_in_every_spelling(spelling: str) -> None:
    register_secret(SECRET)
    assert SECRET not in redact(spelling)
    assert MASK in redact(spelling)


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abcdefghijkl",
        "incorrect API key provided: sk-ant-REDACTME-0123456789",
        '{"x-api-key": "REDACTME0123456789"}',
        "https://user:REDACTME@proxy.corp:3128 refused the connection",
        "GET /o?X-Amz-Signature=REDACTME0123&x=1",
        "the key AKIAREDACTME01234567 does not exist"[:-1],
        "https://REDACTME@git.corp/repo",
        "redis://:REDACTME@cache:6379",
        "aws_secret_access_key = REDACTME/0123+x",
        '{"access_token":"REDACTME01"}',
        "MY_API_KEY=REDACTME0123",
        "password: REDACTME",
        "GET /v1beta/models?key=REDACTME",
        "hf_REDACTMEREDACTMEREDACTME",
        "eyJhbGciOiJSUzI1.eyJpc3MiOiJREDACTME.c2lnbmF0dXJlREDACTME",
    ],
)
def test_what_looks_like_a_credential_is_removed(text: str) -> None:
    assert MASK in redact(text)
    assert "REDACTME" not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "spec.training.rank: Input should be a valid integer",
        "s3://loras/studio/statue/8d2f6a54-6a0a-4ef5-9b43-3f5b6b1d2c11/attempt-1/adapter.safetensors",
        "review it and set spec.annotation.approvedCaptions to sha256:" + "a" * 64,
        "a basic photo of a bearer with a skateboard",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


def test_a_service_that_repeats_the_key_puts_it_into_no_result_status_or_log() -> None:
    register_secret("topsecretkey")
    message = "401: the key topsecretkey is not valid"
    result = StageResult(outcome=Outcome.FAILED, reason=Reason.CREDENTIALS_REFUSED, message=message)
    assert b"topsecretkey" not in encode_result(result)
    # the operator does not hold the key, but reads what a pod wrote
    forged = '{"outcome": "failed", "reason": "CredentialsRefused", "message": "Bearer abcdefghijkl"}'
    read = decode_result(forged)
    assert read is not None
    assert "abcdefghijkl" not in read.message
    failure = Failure(reason="CredentialsRefused", message=message)
    assert "topsecretkey" not in str(failure.to_wire())
    condition = {"type": "Succeeded", "status": "False", "reason": "CredentialsRefused", "message": message}
    assert "topsecretkey" not in str(
        Condition.model_validate(condition | {"lastTransitionTime": "2026-01-01T00:00:00Z"}).to_wire()
    )
    try:
        raise ValueError(message)
    except ValueError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "", 0, "failed: %s", (message,), (ValueError, error, None)
        )
    assert "topsecretkey" not in RedactingFormatter().format(record)


def test_a_secret_at_the_edge_of_a_cut_is_removed_whole() -> None:
    register_secret("edgesecretedgesecret")
    text = "x" * 4090 + "edgesecretedgesecret"
    result = StageResult(outcome=Outcome.FAILED, reason=Reason.INTERNAL_ERROR, message=text)
    assert "edges" not in result.message


def test_a_credential_that_a_stage_reads_is_removed(tmp_path: Path) -> None:
    (tmp_path / "apiKey").write_text("four-plain-words-here\n")
    key = read_credential(str(tmp_path), "apiKey")
    assert redact(f"401: {key} is unknown") == f"401: {MASK} is unknown"


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in redact_module._PATTERNS])
@given(data=st.data())
def test_no_pattern_is_skipped_where_it_matches(pattern: re.Pattern[str], data: st.DataObject) -> None:
    """Texts without a trigger are not searched for the patterns."""
    text = data.draw(st.from_regex(pattern))
    assert redact_module._TRIGGERS.search(text)
