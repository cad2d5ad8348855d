"""The whole stage with eight scripted services."""

from __future__ import annotations

import ssl
from decimal import Decimal
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer

from lora_api.reasons import Reason
from tests.support import services
from tests.support.certificates import make_certificate
from tests.support.services import Service

from .conftest import Job

CAPTION = "a photo of CUS statue, close-up at eye level, on a green lawn, soft daylight"


@pytest.fixture
def run_with(make_job, http_server: HTTPServer, tmp_path: Path):
    """Return a function that runs a job with a service."""

    def run(answer, *, annotation=None, dataset=None, server=http_server, path="/v1", **llm):
        service = Service(answer)
        server.clear()
        server.expect_request("/v1/chat/completions", method="POST").respond_with_handler(service.handle)
        server.expect_request("/v1/messages", method="POST").respond_with_handler(service.handle)
        server.expect_request("/chat/completions").respond_with_data("404 page not found", status=404)
        job: Job = make_job(annotation=annotation or {})
        if dataset:
            job.spec["dataset"] = {"prefix": job.prefix, **dataset}
        secret = tmp_path / "llm-secret"
        secret.mkdir(exist_ok=True)
        if not (secret / "apiKey").exists():
            (secret / "apiKey").write_text("sk-test\n")
        job.llm = {
            "provider": "openai",
            "baseURL": server.url_for(path).rstrip("/"),
            "credentialsDir": str(secret),
            "model": "m",
            "price": {"input": "0.10", "output": "0.50"},
            "concurrency": 1,
            "timeoutSeconds": 10,
            "retrySeconds": 5,
        } | llm
        code, result = job.run()
        return job, service, code, result

    return run


@pytest.mark.parametrize(
    ("answer", "requests"),
    [
        (services.openai_itself, 6),
        (services.vllm, 5),
        (services.ollama, 6),
        (services.litellm_before_claude, 7),
        (services.gateway, 5),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_services_that_need_other_parameters_get_one_more_request_in_a_run(run_with, answer, requests):
    job, service, code, result = run_with(answer)
    assert code == 0, result.message
    assert {row["text"] for row in job.captions()} == {CAPTION}
    assert len(service.requests) == requests
    assert result.captions.usage.requests == 5
    assert result.captions.usage.cost_usd > 0
    assert result.captions.usage.reserved_usd is None


@pytest.mark.parametrize("policy", ["Skip", "Template", "Fail"])
def test_azure_with_its_filter(run_with, policy):
    job, service, code, result = run_with(
        services.azure_with_filter, annotation={"onCaptionFailure": policy}, dataset={"minImages": 4}
    )
    assert len(service.requests) == 5  # the filter's answer is final, so it is not requested again
    if policy == "Fail":
        assert (code, result.reason) == (65, Reason.CAPTION_REFUSED)
        assert "content management policy" in result.message
        return
    assert code == 0, result.message
    texts = [row["text"] for row in job.captions()]
    assert texts.count(CAPTION) == 4
    assert texts[1:2] == (["a photo of CUS statue"] if policy == "Template" else [CAPTION])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("gateway-tls"))


@pytest.fixture
def secured(certificate: Path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
    with HTTPServer(host="127.0.0.1", ssl_context=context, threaded=True) as server:
        yield server


def test_a_gateway_with_its_own_authority(run_with, secured, certificate):
    job, _, code, result = run_with(services.gateway, server=secured, caFile=str(certificate / "ca.crt"))
    assert code == 0, result.message
    assert {row["text"] for row in job.captions()} == {CAPTION}


def test_a_certificate_that_is_not_trusted_is_named_and_not_retried(run_with, secured):
    _, service, code, result = run_with(services.gateway, server=secured, retrySeconds=60)
    assert (code, result.reason) == (78, Reason.CONFIGURATION_INVALID)
    assert "llm.caConfigMap" in result.message
    assert "certificate" in result.message
    assert service.requests == []


def test_a_slow_service_gets_one_request_at_a_time(run_with):
    job, service, code, result = run_with(
        services.Slow(0.7), concurrency=4, timeoutSeconds=1.2, retrySeconds=30
    )
    assert code == 0, result.message
    assert {row["text"] for row in job.captions()} == {CAPTION}
    assert len(service.requests) < 20


def test_a_reasoning_model_gets_a_larger_limit_once(run_with):
    job, service, code, result = run_with(services.reasoning)
    assert code == 0, result.message
    assert {row["text"] for row in job.captions()} == {CAPTION}
    assert [body["max_tokens"] for body in service.requests] == [1024] + [4096] * 5
    # the reply that was cut off was paid for
    assert result.captions.usage.requests == 6
    assert (
        result.captions.usage.cost_usd
        == (6 * 900 * Decimal("0.10") + (1024 + 5 * 3100) * Decimal("0.50")) / 1_000_000
    )


def test_a_model_that_only_reasons_fails_with_its_use_of_tokens(run_with):
    def endless(body, _):
        limit = body["max_tokens"]
        usage = {
            "prompt_tokens": 9,
            "completion_tokens": limit,
            "completion_tokens_details": {"reasoning_tokens": limit},
        }
        return services.json_response(services.completion("", finish_reason="length", usage=usage))

    _, service, code, result = run_with(endless)
    assert (code, result.reason) == (78, Reason.CONFIGURATION_INVALID)
    assert "16384 of them for reasoning" in result.message
    assert [body["max_tokens"] for body in service.requests] == [1024, 4096, 16384, 16384]
