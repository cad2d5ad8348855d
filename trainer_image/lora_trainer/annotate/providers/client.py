"""Requests to an HTTP service through its SDK, with a defined error for every failure.

The SDKs are asked for raw responses, since they build their models without validation and compatible services differ in
their responses. The SDKs' retries are switched off. The captioner repeats requests itself, since it also knows the
budget, the other requests and the length of an outage.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2

from lora_api.json_bounds import JsonBoundsError, load_json
from lora_api.redact import register_secret
from lora_api.stages import LLMAccess

from ...errors import BadConfigurationError, BadSetupError, RefusedCredentialsError
from .error_body import quote, read_error, reports_error
from .errors import AMBIGUOUS_STATUSES, NOT_ABOUT_A_PART, explain, explain_connection, explain_inside
from .protocol import MalformedReplyError, TransientError
from .responses import bound_response, refuse_redirect, text_of
from .shape import RequestShape

log = logging.getLogger(__name__)

MAX_ADAPTATIONS = 8
"""Maximum number of forms in which a request is sent. Each form replaces or drops at least one part of the last one."""

ROTATION_SECONDS = 120.0
"""How long a request is repeated whose key is refused although it worked before. The kubelet takes about a minute to
update the files of a Secret."""
ROTATION_PAUSE = 5.0
"""Seconds between these requests."""

COMMENTS = re.compile(r"(?:[ \t\r\n]*:[^\n]*\n)+")
"""Comments of an event stream, which gateways send to keep a connection open until the JSON follows."""

Send = Callable[[Mapping[str, str]], Awaitable[httpx2.Response]]
"""Sends a request of the given shape through an SDK, which raises for statuses of 400 and above."""


def read_api_key(access: LLMAccess) -> str:
    """Read the service's API key; empty if the profile names no Secret.

    Raises:
        RefusedCredentialsError: when the key is missing, empty, or cannot be sent in an HTTP header.
    """
    if not access.credentials_dir:
        return ""
    path = Path(access.credentials_dir) / "apiKey"
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    key = data.decode("utf-8", "replace").strip()
    if not key:
        raise RefusedCredentialsError(
            f"the Secret mounted at {access.credentials_dir} has no key 'apiKey', or it is empty"
        )
    # An HTTP header may only contain ASCII. Editors and consoles add byte order marks and typographic characters.
    for position, character in enumerate(key, 1):
        if not "!" <= character <= "~":
            name = "a byte order mark" if character == "\ufeff" else f"U+{ord(character):04X}"
            raise RefusedCredentialsError(
                f"the key 'apiKey' in the Secret has a character that no API key has: {name} at position {position}; "
                "create the Secret again from the key alone"
            )
    register_secret(key)
    return key


def sdk_options(access: LLMAccess, key: str) -> dict[str, Any]:
    """Return the arguments of an SDK's client, which both SDKs call alike. An SDK requires a key even if none is sent."""
    url, query = split_query(access.base_url)
    return {
        "api_key": key or "none",
        "base_url": url or None,
        "default_query": query,
        "max_retries": 0,
        "http_client": make_http_client(access, keyless=not key),
    }


def make_http_client(access: LLMAccess, keyless: bool) -> httpx2.AsyncClient:
    """Create an HTTP client with the profile's CA file, proxy and timeout.

    Args:
        keyless: whether to remove the credential headers that the SDK adds, for services without a key.

    Raises:
        BadConfigurationError: when the CA file or the proxy cannot be used.
    """

    async def remove_credentials(request: httpx2.Request) -> None:
        request.headers.pop("authorization", None)
        request.headers.pop("x-api-key", None)

    try:
        context = ssl.create_default_context(cafile=access.ca_file or None)
        if access.ca_file:
            # A proxy may have a certificate of a public authority.
            context.load_default_certs()
    except (OSError, ssl.SSLError) as error:
        raise BadConfigurationError(
            f"the LLM's CA file {access.ca_file} cannot be used: {error}; llm.caConfigMap needs a key ca.crt in PEM form"
        ) from None
    try:
        return httpx2.AsyncClient(
            verify=context,
            proxy=access.proxy or None,
            timeout=access.timeout_seconds,
            follow_redirects=True,
            headers={"accept-encoding": "identity"},
            event_hooks={
                "request": [remove_credentials] if keyless else [],
                "response": [refuse_redirect, bound_response],
            },
        )
    except (ValueError, httpx2.InvalidURL) as error:
        raise BadConfigurationError(f"the profile's llm.proxy cannot be used: {error}") from None


def split_query(base_url: str) -> tuple[str, dict[str, object]]:
    """Split a base URL into the URL and the parameters of its query, such as Azure's api-version."""
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL:
        return base_url, {}  # reported by the first request
    return str(url.copy_with(query=None)) if url.query else base_url, dict(url.params)


class ServiceClient:
    """A client that sends requests through either SDK and returns the JSON body of the response."""

    def __init__(
        self, sdk: Any, access: LLMAccess, key: str, shape: RequestShape, use_key: Callable[[str], None]
    ) -> None:
        """
        Args:
            sdk: the module `openai` or `anthropic`. Their exceptions have the same names.
            key: the API key; empty: none. Every key that was used is removed from quoted responses.
            shape: the variants of the request that are tried.
            use_key: makes the SDK send another key.
        """
        self._sdk = sdk
        self._access = access
        self._keys = [key] if key else []
        self._use_key = use_key
        self._worked = False
        self.shape = shape

    async def post(self, send: Send) -> dict[str, Any]:
        """Send a request, and repeat it for some time if the key is refused that worked before.

        The key may have been rotated. It is then read from its file again, which the kubelet updates some time after
        the Secret.

        Raises:
            ImageRefusedError, MalformedReplyError, TransientError, StageError: see `Provider.ask`.
        """
        refused_at: float | None = None
        while True:
            try:
                if refused_at is not None:
                    self._keys.append(read_api_key(self._access))
                    self._use_key(self._keys[-1])
                body = await self._adapt(send)
            except RefusedCredentialsError as error:
                now = time.monotonic()
                refused_at = refused_at or now
                if not (self._worked and self._keys) or now - refused_at >= ROTATION_SECONDS:
                    raise
                log.warning(
                    "%s; reading the key again in %d s, because it worked before", error, ROTATION_PAUSE
                )
            else:
                self._worked = True
                return body
            await asyncio.sleep(ROTATION_PAUSE)

    async def _adapt(self, send: Send) -> dict[str, Any]:
        """Send a request, again in another shape if the service names a part that it does not accept."""
        for _ in range(MAX_ADAPTATIONS):
            sent = self.shape.snapshot()
            response = await self._exchange(send, sent)
            if response is not None:
                return self._read(response)
        raise BadSetupError(f"the LLM service at {self._url} accepts no form of the request")

    @property
    def _url(self) -> str:
        return self._access.base_url or "its default URL"

    async def _exchange(self, send: Send, sent: Mapping[str, str]) -> httpx2.Response | None:
        """Send a request once. Returns None when the shape was adapted and the request is to be sent again."""
        seconds = self._access.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                return await send(sent)
        except (TimeoutError, self._sdk.APITimeoutError) as error:
            # A request is not billed if the connection could not be opened. One whose answer is late may be.
            connecting = any(
                isinstance(cause, httpx2.ConnectTimeout) for cause in (error.__cause__, error.__context__)
            )
            raise TransientError(
                f"the LLM gave no answer within {seconds:.0f} s (llm.timeoutSeconds in the profile)",
                timed_out=not connecting,
            ) from error
        except self._sdk.APIStatusError as error:
            response = error.response
            problem = read_error(self._redact(text_of(response)))
            if self._may_adapt(response.status_code, problem.text) and self.shape.adapt(problem.text, sent):
                return None
            raise explain(response.status_code, problem, response, self._access.model) from error
        except self._sdk.APIConnectionError as error:
            raise explain_connection(error, self._url) from error
        except (httpx2.HTTPError, httpx2.InvalidURL, self._sdk.APIError, UnicodeError, ValueError) as error:
            raise explain_connection(error, self._url) from error

    @staticmethod
    def _may_adapt(status: int, text: str) -> bool:
        """Return whether an error response may be about a part of the request rather than account, model or image."""
        if any(pattern.search(text) for pattern in NOT_ABOUT_A_PART):
            return False
        return status in AMBIGUOUS_STATUSES and status != 403

    def _read(self, response: httpx2.Response) -> dict[str, Any]:
        """Return the JSON object in a response.

        Raises:
            MalformedReplyError: when the body is not a JSON object.
            ImageRefusedError, TransientError, StageError: when the object is an error.
        """
        text = self._redact(text_of(response))
        kind = response.headers.get("content-type", "no content type").partition(";")[0]
        try:
            body = load_json(_json_in(text).encode(errors="replace"))
        except JsonBoundsError:
            if kind == "text/event-stream" or text.startswith(("data:", "event:")):
                raise MalformedReplyError(
                    f"the LLM service at {self._url} answered with an event stream, which was not requested; use a "
                    f"service or a gateway that answers without streaming. It begins: {quote(text)}"
                ) from None
            page = "a web page" if "html" in kind or text.lstrip()[:1] == "<" else f"{kind} that is not JSON"
            raise MalformedReplyError(
                f"the LLM service at {self._url} answered with {page}; check the profile's llm.baseURL. "
                f"It begins: {quote(text)}"
            ) from None
        if isinstance(body, list) and len(body) == 1:
            body = body[0]
        if isinstance(body, dict):
            if reports_error(body):
                raise explain_inside(read_error(text), response, self._access.model)
            return body
        raise MalformedReplyError(
            f"the LLM service at {self._url} answered with JSON that is not a reply: {quote(text)}"
        )

    def malformed(self, body: Mapping[str, Any]) -> MalformedReplyError:
        """Create the error for a JSON body that is not a reply."""
        words = read_error(json.dumps(body, ensure_ascii=False)).message
        return MalformedReplyError(
            f"the LLM service at {self._url} answered with JSON that is not a reply: {words}"
        )

    def _redact(self, text: str) -> str:
        """Replace the API keys in a body, since some gateways echo them."""
        for key in self._keys:
            text = text.replace(key, "***")
        return text


def _json_in(text: str) -> str:
    """Return a body without what gateways put around its JSON.

    These are record separators, zero bytes, comments, and the guard `)]}'` against inclusion as a script.
    """
    text = text.strip("\0\x1e \t\r\n").removeprefix(")]}'")
    comments = COMMENTS.match(text)
    return text[comments.end() :] if comments else text
