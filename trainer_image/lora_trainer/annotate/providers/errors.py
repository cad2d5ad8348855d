"""Mapping of service failures to the stage's errors, for all HTTP providers."""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from lora_api.reasons import Reason

from ...errors import BadSetupError, RefusedCredentialsError, StageError
from .error_body import ServiceError
from .protocol import ImageRefusedError, MalformedReplyError, TransientError

NO_CREDIT = re.compile(
    r"credit balance|insufficient[_ ](?:quota|credit|fund|balance)|exceeded your current quota"
    r"|budget (?:has been )?exceeded|budget_exceeded|exceededbudget|spend(?:ing)?[_ ]limit|billing_hard_limit"
    r"|not enough credits|requires more credits|billing_error|balance is (?:too low|insufficient|not enough)"
    r"|(?:does not|doesn't|do not|don't) have (?:any |enough |sufficient )?(?:credit|balance|fund)|arrear|余额不足|欠费",
    re.IGNORECASE,
)
"""Words and codes for an account without credit. The request is not repeated, whatever the status."""

REFUSED_IMAGE = re.compile(
    r"content[_ ](?:management[_ ])?(?:filter|policy|moderation)|responsibleaipolicy|output blocked"
    r"|(?:could not|cannot|can't|unable to|failed to) (?:process|decode|read|parse|load|identify) (?:the |this |input )*image"
    r"|image_parse_error|invalid_image|image_content_policy|(?:was|been|were) flagged|moderation|safety (?:system|reasons|filter)"
    r"|usage policies|sensitive content|inappropriate content|data_?inspection_?failed|敏感|违规",
    re.IGNORECASE,
)
"""Words and codes with which services decline one image."""

NO_VISION = re.compile(
    r"(?:not|n't|no) (?:a )?(?:support(?:s|ed)? )?(?:for )?(?:the |any )?(?:image|vision|multi-?modal)"
    r"|image(?:_url|s)?.{0,40}(?:not supported|only supported|not (?:enabled|available))"
    r"|missing data required for image input|only text|text-only|no endpoints found that support image"
    r"|unknown variant .?image|content.{0,3} must be a string|at most 0 image",
    re.IGNORECASE,
)
"""Words for a model that cannot read images."""

TRANSIENT = re.compile(
    r"rate.?limit|overloaded|timeout|timed out|unavailable|too many requests|server_error|try again|loading",
    re.IGNORECASE,
)
THROTTLED = re.compile(
    r"throttl|too many requests|toomanyrequests|rate.?limit(?:ed|s? (?:reached|exceeded)|_)|overloaded|try again (?:in|later)",
    re.IGNORECASE,
)
"""Words and codes for too many requests, which some services send with HTTP 400."""

NO_MODEL = re.compile(
    r"invalid[_ ]model|(?:model|deployment)_?not_?found|(?:unknown|no such) model|deployment.{0,60}does not exist|model.{0,60}(?:does not exist|not found|is not available)"
    r"|access to (?:the |this )?model|no endpoints found",
    re.IGNORECASE,
)
"""Words and codes for a model that the service does not have, or that the account may not use."""

BAD_KEY = re.compile(
    r"(?:invalid|incorrect|wrong|bad)[_ ]api[_ ]?key|api[_ ]?key[_ ](?:is )?(?:not[_ ]valid|invalid)",
    re.IGNORECASE,
)
"""Words and codes for a refused key, which some services send with HTTP 400."""

REGION = re.compile(
    r"unsupported_country|(?:country|region|location)\b.{0,40}\bnot (?:supported|available|allowed)",
    re.IGNORECASE,
)
"""Words and codes of a service that does not serve the place that the request comes from."""

NOT_ABOUT_A_PART = (NO_CREDIT, REFUSED_IMAGE, THROTTLED, BAD_KEY)
"""Patterns of errors that are about the account or the image, never about a part of the request.

`NO_VISION` is not among them: services also say that a parameter is not supported with images."""

RETRY_IN = re.compile(r"(?:retry|try again) in (\d{1,6}(?:\.\d+)?) ?s", re.IGNORECASE)

REJECTED_KEY = re.compile(
    r"api[_ ]?(?:secret[_ ])?key|authenticat|unauthori[sz]ed|permission|credential|token (?:is )?invalid|invalid token|login fail",
    re.IGNORECASE,
)

NOT_HTTP = re.compile(r"^illegal (?:request|status|header) line|^receive buffer too long", re.IGNORECASE)
"""Words of the HTTP client for an answer of another protocol, such as a TLS alert."""

AMBIGUOUS_STATUSES = (400, 403, 415, 422, 451, 500, 501)
"""Statuses with which services decline single images, among other meanings."""


def explain(
    status: int, error: ServiceError, response: httpx2.Response, model: str
) -> StageError | ImageRefusedError:
    """Return the error that an error response stands for, with the service's message."""
    # The order matters: services use one status for several failures, so words and codes are checked first.
    words = error.message
    pause = pause_of(response, words)
    if status == 429 and pause is not None and RETRY_IN.search(words):
        # Gemini reports its limit per minute in the words that others use for an account without credit.
        return TransientError(f"the LLM is not available (HTTP {status}): {words}", pause)
    if status == 402 or NO_CREDIT.search(error.text):
        return BadSetupError(f"the LLM account has no credit left: {words}", Reason.BUDGET_EXCEEDED)
    if status in (*AMBIGUOUS_STATUSES, 404) and NO_VISION.search(error.text):
        return BadSetupError(
            f"the model {model!r} cannot read images (HTTP {status}): {words}", Reason.MODEL_NOT_ALLOWED
        )
    if status in AMBIGUOUS_STATUSES and REFUSED_IMAGE.search(error.text):
        return ImageRefusedError(f"the service declined the image (HTTP {status}): {words}")
    if status in (400, 403, 422) and NO_MODEL.search(error.text):
        return BadSetupError(
            f"the LLM service has no model {model!r} for this account (HTTP {status}): {words}",
            Reason.MODEL_NOT_ALLOWED,
        )
    if status == 407:
        return BadSetupError(
            f"the proxy asks for credentials (HTTP {status}): give them in the profile's llm.proxy, as in "
            f"http://USER:PASSWORD@HOST:PORT. It answered: {words}"
        )
    if status == 403 and error.web_page:
        return BadSetupError(
            f"a proxy or firewall before the LLM service refused the request (HTTP {status}): {words}"
        )
    if status in (400, 403) and REGION.search(error.text):
        return BadSetupError(f"the LLM service does not serve this cluster's region (HTTP {status}): {words}")
    if status in (401, 403) or (400 <= status < 500 and BAD_KEY.search(error.text)):
        return RefusedCredentialsError(f"the LLM refused the profile's key (HTTP {status}): {words}")
    if status in (404, 405):
        return _not_found(status, words, error, response, model)
    transient = status in (408, 409, 424, 425, 429, 499) or (status >= 500 and status not in (501, 505))
    if transient or (status == 400 and THROTTLED.search(error.text)):
        return TransientError(f"the LLM is not available (HTTP {status}): {words}", pause)
    return BadSetupError(f"the LLM refused the request (HTTP {status}): {words}")


def explain_inside(
    error: ServiceError, response: httpx2.Response, model: str
) -> StageError | ImageRefusedError:
    """Return the error for an error body in a response with HTTP 200, which gateways send."""
    status = error.status
    if status is None:
        # Without a status, the codes are more reliable than the message.
        text = error.codes if re.search(r"[a-z]", error.codes, re.IGNORECASE) else error.message
        status = 503 if TRANSIENT.search(text) else 401 if REJECTED_KEY.search(text) else 400
    return explain(status, error, response, model)


def _not_found(
    status: int, words: str, error: ServiceError, response: httpx2.Response, model: str
) -> StageError:
    url = response.request.url
    named = re.search(rf"(?<!\w){re.escape(model)}(?!\w)", words) if model else None
    if named or "model" in error.text.lower() or NO_MODEL.search(error.text):
        return BadSetupError(f"the LLM service has no model {model!r}: {words}", Reason.MODEL_NOT_ALLOWED)
    hint = "check the profile's llm.baseURL"
    if "/v1/v1/" in url.path:
        hint = "the profile's llm.baseURL must not end in /v1 for this provider"
    elif url.path.count("/chat/completions") > 1 or url.path.count("/messages") > 1:
        hint = "the profile's llm.baseURL must not contain the path of the request, such as /chat/completions"
    elif "/v1/" not in url.path:
        hint = "the profile's llm.baseURL may lack /v1"
    return BadSetupError(
        f"the LLM service has no path {url.path} (HTTP {status}): {hint}. It answered: {words}",
        Reason.MODEL_NOT_ALLOWED if "not_found_error" in error.codes else Reason.CONFIGURATION_INVALID,
    )


def explain_connection(error: BaseException, url: str) -> StageError:
    """Return the error for a request without a response, with the message of its innermost cause."""
    chain = list(_causes(error))
    words = next((str(cause) for cause in reversed(chain) if str(cause)), type(chain[-1]).__name__)
    if (
        any(isinstance(cause, ssl.SSLCertVerificationError) for cause in chain)
        or "CERTIFICATE_VERIFY" in words
    ):
        return BadSetupError(
            f"the certificate of the LLM service at {url} is not trusted: {words}; "
            "name a ConfigMap with its authority's ca.crt in the profile's llm.caConfigMap"
        )
    if any(isinstance(cause, httpx2.DecodingError) for cause in chain):
        return MalformedReplyError(f"the answer of the LLM service at {url} cannot be read: {words}")
    if any(isinstance(cause, httpx2.TooManyRedirects) for cause in chain):
        return BadSetupError(
            f"the LLM service redirects without end: check the profile's llm.baseURL {url!r}"
        )
    if "WRONG_VERSION_NUMBER" in words or "RECORD_LAYER_FAILURE" in words:
        return BadSetupError(
            f"the LLM service does not use TLS at {url}: write http:// in the profile's llm.baseURL"
        )
    if NOT_HTTP.search(words):
        hint = "write https:// in" if url.startswith("http:") else "check"
        return BadSetupError(
            f"the service at {url} does not answer in HTTP: {hint} the profile's llm.baseURL ({words})"
        )
    if any(
        isinstance(cause, httpx2.UnsupportedProtocol | httpx2.InvalidURL | UnicodeError) for cause in chain
    ):
        return BadSetupError(f"the profile's llm.baseURL {url!r} cannot be used: {words}")
    if any(isinstance(cause, httpx2.ProxyError) for cause in chain):
        return BadSetupError(f"the profile's llm.proxy refused the connection to {url}: {words}")
    if any(isinstance(cause, httpx2.LocalProtocolError) for cause in chain):
        return BadSetupError(f"the request to {url} cannot be sent: {words}")
    # The service had begun to answer, so that the request may be billed.
    billed = "message body" in words
    return TransientError(f"the LLM cannot be reached at {url}: {words}", billed=billed)


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def pause_of(response: httpx2.Response, words: str = "") -> float | None:
    """Return the seconds that the service asks to wait, in a header or in words; None when it asks for nothing.

    A pause of zero, or one until a time in the past, asks for nothing: clocks differ, and some gateways always send zero.
    """
    for header, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = response.headers.get(header, "")
        try:
            seconds = float(value) * unit
        except ValueError:
            seconds = _seconds_until(value)
        if math.isfinite(seconds) and seconds > 0:
            return seconds
    match = RETRY_IN.search(words)
    return float(match[1]) if match and float(match[1]) > 0 else None


def _seconds_until(date: str) -> float:
    """Return the seconds until an HTTP date; NaN for another text."""
    try:
        then = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return math.nan
    return (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
