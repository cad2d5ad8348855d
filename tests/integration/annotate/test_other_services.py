"""Services beyond the eight scripted ones: their errors, encodings and forms of replies, through the whole stage.

They are one module because one scripted server gives all answers, and a new service is a few rows of its tables.
"""

from __future__ import annotations

import gzip
import json
import re
import socketserver
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from typing import Any

import pytest
from werkzeug import Response

from lora_api.reasons import Reason
from lora_trainer.annotate.providers import responses
from tests.support.services import FIELDS, completion, json_response

from .conftest import FIELDS as SUBJECT_FIELDS
from .conftest import message
from .test_services import CAPTION, run_with

__all__ = ["run_with"]

GOOD = json.dumps(FIELDS)


def always(make: Callable[[], Response]):
    return lambda body, number: make()


def first(make: Callable[[], Response]):
    """Return an answer that fails the first request only."""
    return lambda body, number: make() if number == 1 else json_response(completion())


def error(status: int, body: Any, content_type: str = "application/json", **headers: str):
    text = body if isinstance(body, str) else json.dumps(body)
    return lambda: Response(text, status=status, content_type=content_type, headers=headers)


def answer(content: Any, **replaced: Any):
    return lambda: json_response(completion(content, **replaced))


def gemini(status: int, text: str, **details: Any):
    return error(
        status,
        [{"error": {"code": status, "message": text, "status": "INVALID_ARGUMENT", "details": [details]}}],
    )


CLOUDFLARE = (
    '<!DOCTYPE html>\n<!--[if lt IE 7]> <html class="no-js ie6 oldie" lang="en-US"> <![endif]-->\n<head><title>llm.corp | 522: '
    "Connection timed out</title><style>body{margin:0}</style></head><body><h1>Connection timed out</h1></body></html>"
)
CHALLENGE = "<!DOCTYPE html><html><head><title>Just a moment...</title></head><body><noscript>Enable JavaScript</noscript></body></html>"

ERRORS = {
    "gemini, key": (gemini(400, "API key not valid. Please pass a valid API key.", reason="API_KEY_INVALID"), 77, Reason.CREDENTIALS_REFUSED, "API key not valid"),
    "gemini, model": (gemini(404, "models/m is not found for API version v1main"), 78, Reason.MODEL_NOT_ALLOWED, "models/m is not found"),
    "mistral, model": (error(400, {"object": "error", "message": "Invalid model: m", "type": "invalid_model", "code": "1500"}), 78, Reason.MODEL_NOT_ALLOWED, "Invalid model"),
    "bedrock, no access": (error(403, {"message": "You don't have access to the model with the specified model ID."}), 78, Reason.MODEL_NOT_ALLOWED, "access to the model"),
    "openrouter, provider's own error": (error(400, {"error": {"code": 400, "message": "Provider returned error", "metadata": {"raw": '{"error": {"message": "temperature is deprecated"}}'}}}), 78, Reason.CONFIGURATION_INVALID, "temperature is deprecated"),
    "openrouter, no vision": (error(404, {"error": {"message": "No endpoints found that support image input", "code": 404}}), 78, Reason.MODEL_NOT_ALLOWED, "cannot read images"),
    "llama.cpp, no vision": (error(500, {"error": {"code": 500, "message": "image input is not supported - hint: you may need to provide the mmproj"}}), 78, Reason.MODEL_NOT_ALLOWED, "mmproj"),
    "groq, no vision": (error(400, {"error": {"message": "messages[1].content must be a string"}}), 78, Reason.MODEL_NOT_ALLOWED, "must be a string"),
    "deepseek, no vision": (error(400, {"error": {"message": "Failed to deserialize: messages[1]: unknown variant `image_url`, expected `text`"}}), 78, Reason.MODEL_NOT_ALLOWED, "unknown variant"),
    "vllm, no vision": (error(400, {"message": "At most 0 image(s) may be provided in one request.", "code": 400}), 78, Reason.MODEL_NOT_ALLOWED, "At most 0 image"),
    "cloudflare, 200": (error(200, {"success": False, "errors": [{"code": 10000, "message": "Authentication error"}], "result": None}), 77, Reason.CREDENTIALS_REFUSED, "Authentication error"),
    "a firewall's page": (error(403, CHALLENGE, "text/html"), 78, Reason.CONFIGURATION_INVALID, "firewall before the LLM service refused the request (HTTP 403): Just a moment..."),
    "a proxy without credentials": (error(407, "Proxy Authentication Required", "text/plain"), 78, Reason.CONFIGURATION_INVALID, "llm.proxy"),
    "streaming only": (error(400, {"error": {"message": "This model only support stream mode, please enable the stream parameter"}}), 78, Reason.CONFIGURATION_INVALID, "only support stream mode"),
    "always a stream": (error(200, 'data: {"choices": []}\n\n', "text/event-stream"), 78, Reason.CONFIGURATION_INVALID, "without streaming"),
    "brackets": (error(200, "[" * 200_000), 78, Reason.CONFIGURATION_INVALID, "not JSON"),
    "brackets in an error": (error(400, "[" * 200_000), 78, Reason.CONFIGURATION_INVALID, "refused the request"),
    "lone surrogates": (error(400, '{"error": {"message": "bad \\ud83d thing"}}'), 78, Reason.CONFIGURATION_INVALID, "thing"),
    "not compressed": (error(200, GOOD, **{"content-encoding": "gzip"}), 78, Reason.CONFIGURATION_INVALID, "cannot be read"),
    "unknown compression": (error(200, GOOD, **{"content-encoding": "br"}), 78, Reason.CONFIGURATION_INVALID, "content encoding 'br'"),
    "redirects": (error(307, "", location="/v1/chat/completions"), 78, Reason.CONFIGURATION_INVALID, "redirects without end"),
    "no content": (error(204, ""), 78, Reason.CONFIGURATION_INVALID, "an empty body"),
    "no message": (error(200, {"choices": [{"index": 0, "text": GOOD}]}), 78, Reason.CONFIGURATION_INVALID, "not a reply"),
    "azure, deployment": (error(404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment for this resource does not exist."}}), 78, Reason.MODEL_NOT_ALLOWED, "deployment"),
    "minimax, balance": (error(200, {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}), 78, Reason.BUDGET_EXCEEDED, "insufficient balance"),
    "minimax, key": (error(200, {"choices": None, "base_resp": {"status_code": 1004, "status_msg": "login fail: Please carry the API secret key"}}), 77, Reason.CREDENTIALS_REFUSED, "login fail"),
    "qianfan, token": (error(200, {"error_code": 110, "error_msg": "Access token invalid or no longer valid"}), 77, Reason.CREDENTIALS_REFUSED, "Access token invalid"),
    "iflow, key": (error(200, {"status": "434", "msg": "Invalid apiKey", "body": None}), 77, Reason.CREDENTIALS_REFUSED, "Invalid apiKey"),
    "siliconflow, balance": (error(403, {"code": 30001, "message": "Sorry, your account balance is insufficient", "data": None}), 78, Reason.BUDGET_EXCEEDED, "balance is insufficient"),
    "zhipu, balance": (error(429, {"error": {"code": "1113", "message": "余额不足或无可用资源包,请充值。"}}), 78, Reason.BUDGET_EXCEEDED, "余额不足"),
    "dashscope, arrears": (error(400, {"error": {"code": "Arrearage", "message": "Access denied, please make sure your account is in good standing."}}), 78, Reason.BUDGET_EXCEEDED, "good standing"),
    "xai, credits": (error(403, {"code": "The caller does not have permission", "error": "Your newly created team doesn't have any credits yet."}), 78, Reason.BUDGET_EXCEEDED, "any credits"),
    "region": (error(403, {"error": {"code": "unsupported_country_region_territory", "message": "Country, region, or territory not supported"}}), 78, Reason.CONFIGURATION_INVALID, "does not serve this cluster's region"),
    "a firewall's code": (error(403, "error code: 1020", "text/plain"), 78, Reason.CONFIGURATION_INVALID, "firewall before the LLM service refused the request (HTTP 403): error code: 1020"),
    "apigee": (error(400, {"fault": {"faultstring": "Invalid ApiKey for given resource", "detail": {"errorcode": "oauth.v2"}}}), 77, Reason.CREDENTIALS_REFUSED, "(HTTP 400): Invalid ApiKey for given resource"),
    "a list of errors": (error(400, {"errors": [{"message": "the words of the server"}]}), 78, Reason.CONFIGURATION_INVALID, "(HTTP 400): the words of the server"),
    "the schema as an answer": (answer(json.dumps({"framing": "How near and from where, for example: close-up from above.", "setting": "Where it is and what is around it."})), 78, Reason.CONFIGURATION_INVALID, "copies the question"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_other_services_name_the_cause_at_once(run_with, name):
    make, code, reason, words = ERRORS[name]
    _, service, got, result = run_with(
        always(make), annotation={"onCaptionFailure": "Skip"}, dataset={"minImages": 1}, retrySeconds=60
    )
    assert (got, result.reason) == (code, reason), result.message
    assert words in result.message
    assert "<" not in result.message
    assert len(service.requests) <= 21  # redirects are followed by the client


TEMPORARY = {
    "gemini, rate": gemini(429, "You exceeded your current quota, please check your plan. Please retry in 0.05s."),
    "bedrock, throttled": error(400, {"__type": "ThrottlingException", "message": "Too many requests, please wait."}),
    "bedrock, timeout": error(424, {"message": "The model timed out"}),
    "openrouter, 200": error(200, {"error": {"code": 502, "message": "Provider returned error"}}),
    "openrouter, choice": error(200, {"choices": [{"message": {"content": ""}, "finish_reason": "error", "error": {"code": 502, "message": "Provider disconnected"}}]}),
    "siliconflow, 200": error(200, {"code": 50505, "message": "Model service overloaded. Please try again later.", "data": None}),
    "cloudflare": error(522, CLOUDFLARE, "text/html"),
    "google, cancelled": error(499, {"error": {"code": 499, "message": "The operation was cancelled.", "status": "CANCELLED"}}),
    "azure's management, 200": error(200, {"statusCode": 429, "message": "Rate limit is exceeded. Try again in 0.05 seconds."}),
    "deepseek, finish reason": answer("", finish_reason="insufficient_system_resource"),
    "zhipu, finish reason": answer("", finish_reason="network_error"),
    "openrouter, finish reason": answer('{"framing": "clo', finish_reason="error"),
    "vllm, finish reason": answer("", finish_reason="abort"),
    "not a number": error(429, "{}", **{"retry-after": "nan"}),
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPORARY)
def test_temporary_failures_of_other_services_are_retried(run_with, name):
    job, service, code, result = run_with(first(TEMPORARY[name]), retrySeconds=30)
    assert code == 0, result.message
    assert len(service.requests) == 6
    assert {row["text"] for row in job.captions()} == {CAPTION}


def test_an_outage_behind_a_web_page_is_reported_with_the_pages_text(run_with):
    _, _, code, result = run_with(always(error(522, CLOUDFLARE, "text/html")), retrySeconds=0.2)
    assert (code, result.reason) == (69, Reason.LLM_UNAVAILABLE)
    assert "(HTTP 522): llm.corp | 522: Connection timed out" in result.message


def test_a_retry_after_date_is_respected(run_with):
    times: list[float] = []

    def respond(body, number):
        times.append(time.time())
        if number == 1:
            return Response(
                "{}", status=429, headers={"retry-after": formatdate(time.time() + 3, usegmt=True)}
            )
        return json_response(completion())

    _, _, code, _ = run_with(respond, retrySeconds=30)
    assert code == 0
    assert times[1] - times[0] >= 1.5  # HTTP dates have whole seconds


@pytest.mark.parametrize("pause", ["0", "-5", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_retry_after_of_zero_does_not_disable_the_back_off(run_with, pause):
    """Clocks differ, and some gateways always send zero. Without a pause, a run would send 100 requests per second."""
    _, service, code, result = run_with(always(error(429, "{}", **{"retry-after": pause})), retrySeconds=2)
    assert (code, result.reason) == (69, Reason.LLM_UNAVAILABLE)
    assert len(service.requests) <= 6


def test_a_retry_after_beyond_the_time_limit_is_named(run_with):
    _, service, code, result = run_with(always(error(429, "{}", **{"retry-after": "3600"})), retrySeconds=60)
    assert code == 69
    assert "asks to wait 3600 s" in result.message
    assert len(service.requests) == 1


def encoded(text: str, encoding: str, content_type: str = "application/json"):
    body = json.dumps(
        completion(json.dumps(FIELDS | {"lighting": text}, ensure_ascii=False)), ensure_ascii=False
    )
    return lambda: Response(body.encode(encoding), content_type=content_type)


USED = {
    "prose around a fence": (answer(f"Okay, {{framing}} first.\n```json\n{GOOD}\n```\nAnything {{else}}?"), CAPTION),
    "a call of a tool": (answer(None, message={"content": None, "tool_calls": [{"type": "function", "function": {"name": "caption", "arguments": GOOD}}]}, finish_reason="tool_calls"), CAPTION),
    "a call with an object": (answer(None, message={"content": None, "tool_calls": [{"function": {"arguments": FIELDS}}]}), CAPTION),
    "a call of a function": (answer(None, message={"content": None, "function_call": {"name": "caption", "arguments": GOOD}}), CAPTION),
    "thinking in parts": (answer([{"type": "thinking", "thinking": [{"type": "text", "text": '{"framing": "no"}'}]}, {"type": "text", "text": GOOD}]), CAPTION),
    "thoughts without an end": (answer(f'<think>Maybe {{"framing": "draft words"}}, no. So:\n{GOOD}'), CAPTION),
    "an object as content": (lambda: json_response(completion(FIELDS)), CAPTION),
    "a part of JSON": (answer([{"type": "json", "json": FIELDS}]), CAPTION),
    "a parsed message": (answer(None, message={"content": None, "parsed": FIELDS}), CAPTION),
    "all in the reasoning": (answer("", message={"content": None, "reasoning": GOOD}), CAPTION),
    "a finish reason in numbers": (answer(None, finish_reason=1), CAPTION),
    "a wrapped completion": (lambda: json_response({"code": 0, "data": completion()}), CAPTION),
    "gzip": (lambda: Response(gzip.compress(json.dumps(completion()).encode()), content_type="application/json", headers={"content-encoding": "gzip"}), CAPTION),
    "another choice has the text": (lambda: json_response(completion("") | {"choices": [*completion("")["choices"], *completion()["choices"]]}), CAPTION),
    "a choice that is null": (lambda: json_response(completion() | {"choices": [None, *completion()["choices"]]}), CAPTION),
    "one choice without a list": (lambda: json_response(completion() | {"choices": completion()["choices"][0]}), CAPTION),
    "a delta in the place of the message": (lambda: json_response(completion() | {"choices": [{"index": 0, "delta": {"content": GOOD}, "finish_reason": "stop"}]}), CAPTION),
    "a message that is its text": (lambda: json_response(completion() | {"choices": [{"index": 0, "message": GOOD}]}), CAPTION),
    "a list of one completion": (lambda: json_response([completion()]), CAPTION),
    "an error without content": (lambda: json_response(completion() | {"error": {"code": 0, "message": ""}}), CAPTION),
    "an error that says success": (lambda: json_response(completion() | {"error": {"code": "0", "message": "success"}}), CAPTION),
    "a draft in a part with reasoning": (answer([{"type": "reasoning", "text": '{"framing": "no"}'}, {"type": "output_text", "text": GOOD}]), CAPTION),
    "a draft in a thought": (answer([{"text": '{"framing": "no"}', "thought": True}, {"text": GOOD}]), CAPTION),
    "comments before the JSON": (lambda: Response(": PROCESSING\n\n" * 3 + json.dumps(completion()), content_type="application/json"), CAPTION),
    "a record separator": (lambda: Response("\x1e" + json.dumps(completion()) + "\n\0", content_type="application/json-seq"), CAPTION),
    "a guard against scripts": (lambda: Response(")]}'\n" + json.dumps(completion()), content_type="application/json"), CAPTION),
    "JSON that is called a stream": (lambda: Response(json.dumps(completion()), content_type="text/event-stream"), CAPTION),
    "UTF-16": (encoded("in a café", "utf-16"), CAPTION.replace("soft daylight", "in a café")),
    "Windows-1252": (encoded("in a café", "cp1252"), CAPTION.replace("soft daylight", "in a café")),
    "a wrong charset": (encoded("in a café", "utf-8", "application/json; charset=iso-8859-1"), CAPTION.replace("soft daylight", "in a café")),
    "a true charset": (encoded("in a café", "mac_roman", "application/json; charset=mac_roman"), CAPTION.replace("soft daylight", "in a café")),
}  # fmt: skip


@pytest.mark.parametrize("name", USED)
def test_replies_of_other_forms_are_used(run_with, name):
    make, caption = USED[name]
    job, service, code, result = run_with(always(make))
    assert code == 0, result.message
    assert {row["text"] for row in job.captions()} == {caption}
    assert len(service.requests) == 5


REFUSED = {
    "no choices": lambda: json_response(completion() | {"choices": []}),
    "choices are left out": lambda: json_response({name: value for name, value in completion().items() if name != "choices"}),
    "choices are null": lambda: json_response(completion() | {"choices": None}),
    "gemini's finish reason": lambda: json_response(completion() | {"choices": [{"index": 0, "finish_reason": "content_filter: SAFETY"}]}),
    "a guardrail": answer("", finish_reason="guardrail_intervened"),
    "a refusal among the parts": answer([{"type": "refusal", "refusal": "I can't help with that"}]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_of_other_forms_concern_one_image(run_with, name):
    refused = REFUSED[name]
    _, _, code, result = run_with(
        lambda body, number: refused() if number in (2, 3) else json_response(completion()),
        annotation={"onCaptionFailure": "Skip"},
        dataset={"minImages": 4},
    )
    assert code == 0, result.message
    assert [item.key.rsplit("/")[-1] for item in result.dataset.skipped] == ["IMG_1.jpg"]


def test_a_draft_in_reasoning_that_was_cut_off_is_no_caption(run_with):
    draft = answer(
        '<think>The user wants {"framing": "how near", "setting": "a desert"} so', finish_reason="length"
    )
    job, _, code, _ = run_with(
        lambda body, number: draft() if body["max_tokens"] < 4096 else json_response(completion())
    )
    assert code == 0
    assert {row["text"] for row in job.captions()} == {CAPTION}


def names_the_fields(body: dict[str, Any]) -> bool:
    return '\\"framing\\"' in json.dumps(body["messages"])


def test_a_service_that_ignores_the_schema_gets_the_fields_in_the_prompt(run_with):
    prose = answer("A statue stands on a green lawn in soft daylight.")
    job, service, code, result = run_with(
        lambda body, number: json_response(completion()) if names_the_fields(body) else prose()
    )
    assert code == 0, result.message
    assert {row["text"] for row in job.captions()} == {CAPTION}
    assert [names_the_fields(body) for body in service.requests] == [False] + [True] * 5


@pytest.fixture
def one_by_one(make_job, messages_api):
    """Return a job that sends one request at a time to the Messages API."""
    job = make_job(llm=messages_api)
    job.llm["concurrency"] = 1
    return job


def test_a_messages_gateway_that_ignores_the_schema_gets_the_fields_in_the_prompt(one_by_one, messages_api):
    def respond(request):
        good = names_the_fields(request.get_json())
        block = (
            {"type": "tool_use", "name": "caption", "input": SUBJECT_FIELDS}
            if good
            else {"type": "text", "text": "A statue on a lawn."}
        )
        return json_response(message("", content=[block]))

    messages_api.answers += [respond] * 6
    code, result = one_by_one.run()
    assert code == 0, result.message
    assert {row["text"] for row in one_by_one.captions()} == {CAPTION}
    assert len(messages_api.requests) == 6


def test_an_impossible_number_of_tokens_is_unknown(run_with):
    usage = {"prompt_tokens": 10**30, "completion_tokens": 5}
    _, _, code, result = run_with(always(answer(None, usage=usage)))
    assert code == 0, result.message
    assert result.captions.usage.cost_usd == 0
    assert result.captions.usage.reserved_usd > 0


REASONING = {"reasoning_tokens": 3920}


@pytest.mark.parametrize(
    ("usage", "output"),
    [
        ({"total_tokens": 5000}, 4000),
        ({"total_tokens": 5000, "completion_tokens_details": REASONING}, 4000),
        ({"total_tokens": None, "completion_tokens_details": REASONING}, 4000),
        ({"completion_tokens_details": []}, 80),
        ({"completion_tokens_details": "none"}, 80),
        ({"prompt_tokens": "1000", "completion_tokens": "80"}, 80),
        ({"input_tokens": 1000, "output_tokens": 80}, 80),
    ],
)
def test_tokens_are_counted_wherever_the_service_reports_them(run_with, usage, output):
    """Gemini and Grok report the tokens of reasoning only in the total, or beside the output."""
    body = completion(usage={"prompt_tokens": 1000, "completion_tokens": 80} | usage)
    if list(usage) == ["input_tokens", "output_tokens"]:
        body["usage"] = usage
    _, _, code, result = run_with(always(lambda: json_response(body)))
    assert code == 0, result.message
    assert result.captions.usage.output_tokens == 5 * output
    assert result.captions.usage.reserved_usd is None


def test_the_query_of_a_base_url_is_sent(run_with, http_server):
    url = http_server.url_for("/v1") + "?api-version=2024-10-21"
    _, service, code, result = run_with(always(answer(None)), baseURL=url)
    assert code == 0, result.message
    assert len(service.requests) == 5
    assert all(request.args["api-version"] == "2024-10-21" for request, _ in http_server.log[-5:])


def test_a_base_url_with_the_wrong_scheme_is_named(run_with, http_server):
    url = http_server.url_for("/v1").replace("http:", "https:")
    _, _, code, result = run_with(always(answer(None)), baseURL=url, retrySeconds=60)
    assert (code, result.reason) == (78, Reason.CONFIGURATION_INVALID)
    assert "write http://" in result.message


@contextmanager
def raw_server(respond: Callable[[Any], None]) -> Iterator[str]:
    """Run a server that answers each request with bytes and closes the connection."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data = b""
            while b"\r\n\r\n" not in data:
                data += self.request.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            assert length
            missing = int(length[1]) - len(body)
            while missing > 0:
                missing -= len(self.request.recv(65536))
            with suppress(OSError):  # the client may have closed the connection
                respond(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CUT = {
    "after the headers": HEAD + b"Content-Length: 500\r\n\r\n",
    "in the body": HEAD + b'Content-Length: 500\r\n\r\n{"choi',
    "in a chunk": HEAD + b'Transfer-Encoding: chunked\r\n\r\n50\r\n{"cho\r\n',
}


@pytest.mark.parametrize("name", CUT)
def test_a_reply_that_is_cut_off_by_the_connection_is_charged(run_with, name):
    with raw_server(lambda connection: connection.sendall(CUT[name])) as url:
        job, _, code, result = run_with(always(answer(None)), baseURL=url, retrySeconds=0.5)
    assert (code, result.reason) == (69, Reason.LLM_UNAVAILABLE)
    spend = json.loads(job.running.store.output.get(job.keys.spend))["usage"]
    assert spend["requests"] >= 1
    assert float(spend["reservedUSD"]) > 0


BODY = json.dumps(completion()).encode()
FRAMED = {
    "trailers": HEAD + b"Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n%x;a=b\r\n%s\r\n0\r\nX-Sum: 1\r\n\r\n" % (len(BODY), BODY),
    "early hints": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    "until the end": b"HTTP/1.0 200\r\n\r\n" + BODY,
    "encoding none": HEAD + b"Content-Encoding: none\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    "encoding utf-8": HEAD + b"Content-Encoding: identity, UTF-8\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMED)
def test_replies_in_unusual_frames_are_used(run_with, name):
    with raw_server(lambda connection: connection.sendall(FRAMED[name])) as url:
        job, _, code, result = run_with(always(answer(None)), baseURL=url)
    assert code == 0, result.message
    assert {row["text"] for row in job.captions()} == {CAPTION}


@pytest.mark.parametrize("data", [b"\x15\x03\x01\x00\x02\x02\x46", b"\0\0\x12\x04" + bytes(20)])
def test_a_service_that_does_not_answer_in_http_is_named_at_once(run_with, data):
    """A TLS alert answers a request to http:// at a port for https://."""
    sent: list[bytes] = []

    def alert(connection: Any) -> None:
        sent.append(data)
        connection.sendall(data)

    with raw_server(alert) as url:
        _, _, code, result = run_with(always(answer(None)), baseURL=url, retrySeconds=60)
    assert (code, result.reason) == (78, Reason.CONFIGURATION_INVALID)
    assert "does not answer in HTTP: write https://" in result.message
    assert len(sent) == 1


def test_a_connection_without_an_answer_is_not_charged(run_with):
    with raw_server(lambda connection: None) as url:
        job, _, code, _ = run_with(always(answer(None)), baseURL=url, retrySeconds=0.5)
    assert code == 69
    assert json.loads(job.running.store.output.get(job.keys.spend))["usage"]["requests"] == 0


def send_endless(connection: Any) -> None:
    connection.sendall(HEAD + b"\r\n")
    while True:
        connection.sendall(b" " * 65536)


def send_bomb(connection: Any) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    data = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    connection.sendall(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(data) + data)


@pytest.mark.parametrize("send", [send_endless, send_bomb])
def test_a_response_without_bounds_is_not_read(run_with, send):
    with raw_server(send) as url:
        _, _, code, result = run_with(always(answer(None)), baseURL=url, retrySeconds=60, timeoutSeconds=60)
    assert (code, result.reason) == (78, Reason.CONFIGURATION_INVALID)
    limit = responses.MAX_BYTES if send is send_endless else responses.MAX_COMPRESSED_BYTES
    assert f"more than {limit >> 10} KiB" in result.message


def has_format(body: dict[str, Any]) -> bool:
    return "format" in body.get("output_config", {})


def has_effort(body: dict[str, Any]) -> bool:
    return "effort" in body.get("output_config", {})


def has_transformations(body: dict[str, Any]) -> bool:
    return "transformations" in body["messages"][0]["content"][0]


NOT_TAKEN = {
    "effort": ("output_config.effort: Extra inputs are not permitted", has_effort, (has_format, has_transformations)),
    "format": ("output_config.format: Extra inputs are not permitted", has_format, (has_effort, has_transformations)),
    "both": ("output_config: Extra inputs are not permitted", lambda body: "output_config" in body, (has_transformations,)),
    "transformations": ("messages.0.content.0.image.transformations: Extra inputs are not permitted", has_transformations, (has_format, has_effort)),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_a_parameter_that_a_messages_gateway_rejects_is_dropped_for_the_run(one_by_one, messages_api, name):
    words, sent, kept = NOT_TAKEN[name]

    def respond(request):
        body = request.get_json()
        if sent(body):
            refusal = {"type": "error", "error": {"type": "invalid_request_error", "message": words}}
            return json_response(refusal, 400)
        if not has_format(body):
            assert names_the_fields(body)
        return json_response(message(json.dumps(SUBJECT_FIELDS)))

    messages_api.answers += [respond] * 6
    code, result = one_by_one.run()
    assert code == 0, result.message
    assert {row["text"] for row in one_by_one.captions()} == {CAPTION}
    assert [sent(body) for body in messages_api.requests] == [True] + [False] * 5
    assert all(part(body) for part in kept for body in messages_api.requests)
