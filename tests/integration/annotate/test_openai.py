"""Captions by services with OpenAI's chat completions API."""

from __future__ import annotations

import json

import pytest
from werkzeug import Response

from lora_api.reasons import Reason

from .conftest import FIELDS, Job, completion


@pytest.fixture
def job(make_job, chat_api) -> Job:
    job = make_job(llm=chat_api)
    job.llm |= {
        "provider": "openai",
        "baseURL": f"{chat_api.url}/v1",
        "model": "gpt-4o-mini",
        "concurrency": 1,
    }
    return job


def test_captions(job, chat_api):
    code, result = job.run()
    assert code == 0
    assert result.captions.usage.input_tokens == 5000
    assert job.captions()[0]["text"].startswith("a photo of CUS statue, close-up")
    asked = chat_api.requests[0]
    assert asked["model"] == "gpt-4o-mini"
    assert asked["max_tokens"] > 0
    assert asked["response_format"]["json_schema"]["strict"] is True
    assert asked["messages"][1]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert chat_api.headers[0]["Authorization"] == "Bearer sk-test"


def refused(status: int, code: str) -> Response:
    body = {"error": {"message": f"the words of {code}", "type": "x", "code": code, "param": None}}
    return Response(
        json.dumps(body), status=status, content_type="application/json", headers={"retry-after-ms": "10"}
    )


@pytest.mark.parametrize(
    ("answer", "requests", "code", "reason"),
    [
        (refused(401, "invalid_api_key"), 1, 77, Reason.CREDENTIALS_REFUSED),
        (refused(429, "insufficient_quota"), 1, 78, Reason.BUDGET_EXCEEDED),
        (refused(404, "model_not_found"), 1, 78, Reason.MODEL_NOT_ALLOWED),
        (refused(429, "rate_limit_exceeded"), 9, 69, Reason.LLM_UNAVAILABLE),
        (refused(503, "overloaded"), 9, 69, Reason.LLM_UNAVAILABLE),
    ],
    ids=lambda value: str(getattr(value, "status_code", value)),
)
def test_faults(job, chat_api, answer, requests, code, reason):
    chat_api.answers += [answer] * 5000
    if code == 69:
        job.llm["retrySeconds"] = 0.5
    got, result = job.run()
    chat_api.answers.clear()
    assert (got, result.reason) == (code, reason)
    assert "the words of" in result.message
    assert len(chat_api.requests) == requests or len(chat_api.requests) > 9 == requests


@pytest.mark.parametrize(
    "answer",
    [
        completion(None, refusal="I can't help with that"),
        completion(None, finish_reason="content_filter"),
        completion('{"framing": "x', finish_reason="length"),
        completion(json.dumps(FIELDS), choices=[]),
        completion("prose", usage=None),
        Response("[]", content_type="application/json"),
        Response("{]", content_type="application/json"),
        Response("plain words", content_type="text/plain"),
    ],
    ids=["refusal", "filter", "cut", "no choice", "prose", "list", "broken", "text"],
)
def test_an_unusable_reply_is_requested_once_more(job, chat_api, answer):
    chat_api.answers += [answer]
    code, _ = job.run()
    assert code == 0
    assert len(chat_api.requests) == 6
