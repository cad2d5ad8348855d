"""Deviations of single services from the APIs, through the whole stage with real sockets."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from werkzeug import Response

from lora_api.reasons import Reason
from tests.support.services import FIELDS, completion, json_response

from .test_services import CAPTION, run_with

__all__ = ["run_with"]


def always(value):
    return lambda body, number: value if isinstance(value, Response) else value()


GOOD = json.dumps(FIELDS)
READABLE = {
    "fence": f"```json\n{GOOD}\n```",
    "preamble": f"Sure! Here is the JSON:\n{GOOD}\nHope this helps.",
    "byte order mark": "\ufeff" + GOOD,
    "thoughts": f"<think>hm {{x}}</think>{GOOD}",
    "end of thoughts": f"hm</think>{GOOD}",
    "missing keys": json.dumps({name: value for name, value in FIELDS.items() if value}),
    "null": json.dumps({name: value or None for name, value in FIELDS.items()}),
    "extra keys": json.dumps(FIELDS | {"confidence": 1, "notes": ["a"]}),
    "nested": json.dumps({"caption": FIELDS}),
    "capitalised": json.dumps({name.upper(): value for name, value in FIELDS.items()}),
}


@pytest.mark.parametrize("name", READABLE)
def test_replies_are_read_tolerantly_and_paid_for_once(run_with, name):
    job, service, code, result = run_with(always(json_response(completion(READABLE[name]))))
    assert code == 0, result.message
    assert {row["text"] for row in job.captions()} == {CAPTION}
    assert len(service.requests) == 5


@pytest.mark.parametrize(
    "usage",
    [
        {},
        None,
        "absent",
        {"prompt_tokens": None, "completion_tokens": None},
        {"prompt_tokens": 10.5, "completion_tokens": 3},
        {"prompt_tokens": -1, "completion_tokens": 5},
        {"prompt_tokens": "many", "completion_tokens": [1]},
        {"completion_tokens": 80},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        [1, 2],
    ],
    ids=repr,
)
def test_unknown_usage_is_charged_at_the_reservation(run_with, usage):
    body = completion(usage=usage)
    if usage == "absent":
        del body["usage"]
    _, _, code, result = run_with(always(json_response(body)))
    assert code == 0, result.message
    assert result.captions.usage.requests == 5
    assert result.captions.usage.cost_usd == 0
    assert result.captions.usage.reserved_usd > 0
    assert "did not report the usage" in result.dataset.first_warning


def test_without_usage_the_cost_limit_still_applies(run_with):
    body = completion(usage=None)
    limits = {"limits": {"maxCostUSD": "0.002"}}
    _, service, code, result = run_with(always(json_response(body)), annotation=limits)
    assert (code, result.reason) == (78, Reason.BUDGET_EXCEEDED)
    assert 0 < len(service.requests) < 5


def test_a_limit_without_a_price_is_refused_before_a_request(run_with):
    limits = {"limits": {"maxCostUSD": "1"}}
    _, service, code, result = run_with(always(json_response(completion())), annotation=limits, price=None)
    assert (code, result.reason) == (78, Reason.CONFIGURATION_INVALID)
    assert "no price" in result.message
    assert service.requests == []


def test_without_a_price_the_unknown_cost_is_a_warning(run_with):
    _, _, code, result = run_with(always(json_response(completion())), price=None)
    assert code == 0
    assert result.captions.usage.cost_usd is None
    assert "cost of the captions is unknown" in result.dataset.first_warning


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": GOOD}],
        [{"type": "output_text", "text": GOOD}],
        {"text": GOOD},
        [GOOD[:9], GOOD[9:]],
    ],
)
def test_content_in_parts(run_with, content):
    job, _, code, _ = run_with(always(json_response(completion(content))))
    assert code == 0
    assert job.captions()[0]["text"] == CAPTION


STREAM = 'data: {"choices":[{"delta":{"content":"{"}}]}\n\ndata: [DONE]\n\n'
LOGIN = (
    "<!doctype html><html><head><title>Sign in</title></head><body>Please log in to Corp SSO</body></html>"
)
WRONG = {
    "error": (
        lambda: json_response({"error": {"message": "the words of the server", "code": 400}}),
        78,
        "the words of the server",
    ),
    "error text": (
        lambda: json_response({"error": "the words of the server"}),
        78,
        "the words of the server",
    ),
    "key": (
        lambda: json_response({"error": {"message": "bad token", "type": "authentication_error"}}),
        77,
        "bad token",
    ),
    "busy": (lambda: json_response({"error": {"message": "come back", "code": 503}}), 69, "come back"),
    "limited": (
        lambda: json_response({"error": {"message": "slow down", "type": "rate_limit_error"}}),
        69,
        "slow down",
    ),
    "spent": (
        lambda: json_response({"error": {"message": "Your credit balance is too low", "code": 402}}),
        78,
        "credit balance",
    ),
    "login page": (lambda: Response(LOGIN, content_type="text/html"), 78, "Corp SSO"),
    "stream": (lambda: Response(STREAM, content_type="text/event-stream"), 78, "event stream"),
    "another API": (
        lambda: json_response({"message": "Welcome to the gateway"}),
        78,
        "Welcome to the gateway",
    ),
}


@pytest.mark.parametrize("policy", ["Template", "Skip"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_services_fail_in_their_own_words_whatever_the_policy(run_with, name, policy):
    make, expected, words = WRONG[name]
    _, service, code, result = run_with(
        always(make), annotation={"onCaptionFailure": policy}, dataset={"minImages": 1}, retrySeconds=0.2
    )
    assert code == expected
    assert words in result.message
    if expected != 69:
        assert len(service.requests) <= 2


def error(status: int, message: str, **fields: object):
    return lambda: json_response({"error": {"message": message, **fields}}, status)


REFUSED_IMAGES = {
    "filter": error(400, "blocked", code="content_filter"),
    "policy": error(
        400, "Your request was rejected as a result of our safety system.", code="content_policy_violation"
    ),
    "unreadable": error(400, "Could not process image"),
    "output blocked": error(400, "Output blocked by content filtering policy", type="invalid_request_error"),
    "moderated": error(403, "Your chosen model requires moderation and your input was flagged"),
    "parse": error(400, "image_parse_error", code="image_parse_error"),
    "sensitive": error(400, "系统检测到输入或生成内容可能包含不安全或敏感内容", code="1301"),
}


@pytest.mark.parametrize("name", REFUSED_IMAGES)
def test_an_error_about_one_image_is_its_refusal(run_with, name):
    refused = REFUSED_IMAGES[name]
    _, service, code, result = run_with(
        lambda body, number: refused() if number == 2 else json_response(completion()),
        annotation={"onCaptionFailure": "Skip"},
        dataset={"minImages": 4},
    )
    assert code == 0, result.message
    assert [item.key.rsplit("/")[-1] for item in result.dataset.skipped] == ["IMG_1.jpg"]
    assert result.captions.usage.requests == 4
    assert len(service.requests) == 5


CONFIGURATION = {
    "credit": (error(400, "Your credit balance is too low to access the API"), 78, Reason.BUDGET_EXCEEDED, "credit balance"),
    "litellm budget": (error(400, "Budget has been exceeded! Current cost: 1.2, Max budget: 1.0", type="budget_exceeded"), 78, Reason.BUDGET_EXCEEDED, "Budget has been exceeded"),
    "quota": (error(429, "You exceeded your current quota, please check your plan", code="insufficient_quota"), 78, Reason.BUDGET_EXCEEDED, "quota"),
    "no vision": (error(400, "m is not a multimodal model"), 78, Reason.MODEL_NOT_ALLOWED, "not a multimodal model"),
    "no images": (error(500, "this model does not support image input"), 78, Reason.MODEL_NOT_ALLOWED, "does not support image"),
    "no model": (error(404, "model 'm' not found, try pulling it first"), 78, Reason.MODEL_NOT_ALLOWED, "try pulling it first"),
    "no path": (lambda: Response("404 page not found" + " and more words" * 40, status=404), 78, Reason.CONFIGURATION_INVALID, "404 page not found"),
    "fastapi": (lambda: json_response({"detail": "Not Found"}, 404), 78, Reason.CONFIGURATION_INVALID, "Not Found"),
    "unexplained": (lambda: Response("upstream said no " * 50, status=400), 78, Reason.CONFIGURATION_INVALID, "upstream said no"),
    "key": (error(401, "Incorrect API key provided: sk-test."), 77, Reason.CREDENTIALS_REFUSED, "Incorrect API key"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGURATION)
def test_configuration_errors_name_the_cause(run_with, name):
    make, expected, reason, words = CONFIGURATION[name]
    _, service, code, result = run_with(always(make), annotation={"onCaptionFailure": "Template"})
    assert (code, result.reason) == (expected, reason)
    assert words in result.message
    assert "sk-test" not in result.message
    assert len(result.message) < 700
    assert len(service.requests) == 1


def test_a_rate_limit_that_mentions_billing_is_not_an_exhausted_account(run_with):
    message = "Rate limit reached. You can increase your rate limit by adding a payment method at https://x/account/billing."
    limited = error(429, message, code="rate_limit_exceeded")
    _, _, code, _ = run_with(lambda body, number: limited() if number == 1 else json_response(completion()))
    assert code == 0


def test_a_base_url_without_v1_is_named(run_with):
    _, _, code, result = run_with(always(json_response(completion())), path="/")
    assert (code, result.reason) == (78, Reason.CONFIGURATION_INVALID)
    assert "may lack /v1" in result.message


ADAPTATIONS = {
    "json_schema by vLLM": (422, {"detail": [{"loc": ["body", "response_format", "json_schema"], "msg": "extra fields not permitted", "input": {"max_tokens": 1}}]}, "response_format"),
    "strict": (400, {"error": {"message": "Invalid schema for response_format 'caption': strict is not supported"}}, "response_format"),
    "json mode": (400, {"error": {"message": "JSON mode is not enabled for this model"}}, "response_format"),
    "json by groq": (400, {"error": {"message": "Failed to generate JSON. Please adjust your prompt.", "code": "json_validate_failed"}}, "response_format"),
    "not with images": (400, {"error": {"message": "response_format is not supported for image inputs"}}, "response_format"),
    "two roles": (400, {"error": {"message": "Only user and assistant roles are supported!"}}, "system"),
    "a role": (422, {"error": {"message": "Unexpected message role."}}, "system"),
    "max_tokens": (400, {"error": {"message": "Unrecognized request argument supplied: max_tokens"}}, "max_tokens"),
    "system": (400, {"error": {"message": "System role not supported"}}, "system"),
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_a_rejected_parameter_is_replaced_once_for_the_run(run_with, name):
    status, body, what = ADAPTATIONS[name]

    def has(request: dict) -> bool:
        if what == "system":
            return request["messages"][0]["role"] == "system"
        if what == "response_format":
            return request.get(what, {}).get("type") == "json_schema"
        return what in request

    job, service, code, result = run_with(
        lambda request, _: json_response(body, status) if has(request) else json_response(completion()),
        concurrency=4,
    )
    assert code == 0, result.message
    assert {row["text"] for row in job.captions()} == {CAPTION}
    assert 5 < len(service.requests) <= 9  # at most the four in flight are sent again
    # They may arrive in any order, so they are counted.
    assert sum(has(request) for request in service.requests) <= 4
    assert not has(service.requests[-1])
    schema_in_words = '"framing"' in json.dumps(service.requests[-1]["messages"])
    assert schema_in_words == (what == "response_format") or '\\"framing\\"' in json.dumps(
        service.requests[-1]
    )


def test_a_limit_that_is_too_large_is_lowered(run_with):
    def answer(request, _):
        if request["max_tokens"] > 512:
            return json_response(
                {
                    "error": {
                        "message": "max_tokens is too large: 1024. This model supports at most 512 completion tokens"
                    }
                },
                400,
            )
        return json_response(completion())

    _, service, code, _ = run_with(answer)
    assert code == 0
    assert [request["max_tokens"] for request in service.requests] == [1024] + [512] * 5


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (b"\xef\xbb\xbfsk-test", "byte order mark"),
        ("sk-tést".encode(), "U+00E9"),
        (b"sk-\xff", "U+FFFD"),
        (b"sk test", "U+0020"),
        ("“sk”".encode(), "U+201C"),
    ],
)
def test_a_key_that_cannot_be_sent_is_named_before_a_request(run_with, tmp_path, key, words):
    (tmp_path / "llm-secret").mkdir()
    (tmp_path / "llm-secret" / "apiKey").write_bytes(key)
    _, service, code, result = run_with(
        always(json_response(completion())), annotation={"onCaptionFailure": "Template"}
    )
    assert (code, result.reason) == (77, Reason.CREDENTIALS_REFUSED)
    assert words in result.message
    assert "sk-" not in result.message.replace("apiKey", "")
    assert service.requests == []


def test_a_service_without_a_key(run_with):
    _, service, code, _ = run_with(always(json_response(completion())), credentialsDir="")
    assert code == 0
    assert "Authorization" not in service.headers[0]


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/v1", "127.0.0.1:8000/v1", "http://"])
def test_a_bad_url_is_named_and_not_retried(run_with, url):
    _, _, code, result = run_with(always(json_response(completion())), baseURL=url, retrySeconds=60)
    assert (code, result.reason) == (78, Reason.CONFIGURATION_INVALID)
    assert "baseURL" in result.message


def test_a_proxy_of_the_profile_is_used(run_with):
    seen: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            data = json.dumps(completion()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        _, service, code, result = run_with(
            always(json_response(completion())),
            baseURL="http://llm.invalid/v1",
            proxy=f"http://127.0.0.1:{proxy.server_port}",
        )
        proxy.shutdown()
    assert code == 0, result.message
    assert seen == ["http://llm.invalid/v1/chat/completions"] * 5
    assert service.requests == []


def test_the_cause_of_a_failed_connection_is_named(run_with):
    _, _, code, result = run_with(
        always(json_response(completion())), baseURL="http://llm.invalid/v1", retrySeconds=0.3
    )
    assert code == 69
    assert "llm.invalid" in result.message
    assert "Connection error" not in result.message


def test_retries_are_limited_by_time_and_not_by_number(run_with):
    busy = error(529, "overloaded")
    _, service, code, result = run_with(
        lambda body, number: busy() if number < 60 else json_response(completion()), retrySeconds=30
    )
    assert code == 0, result.message
    assert len(service.requests) == 64


def test_failures_are_in_the_spend_after_a_restart(run_with):
    refused = completion(message={"refusal": "I will not"})
    job, _, code, _ = run_with(always(json_response(refused)))
    assert code == 65
    spend = json.loads(job.running.store.output.get(job.keys.spend))
    assert spend["usage"]["requests"] >= 2
    again, result = job.run()
    assert again == 65
    after = json.loads(job.running.store.output.get(job.keys.spend))
    assert after["usage"]["requests"] == 2 * spend["usage"]["requests"]
    assert result.reason is Reason.CAPTION_REFUSED
