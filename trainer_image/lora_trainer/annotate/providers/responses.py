"""Limits on the size of responses, and their text, whatever their encoding.

The SDKs read responses completely. Without a limit, an endless response or a compressed one of a few kilobytes could
exhaust the memory of the pod.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import AsyncIterator

import httpx2

from ..text_encoding import UnreadableTextError, decode_text

MAX_BYTES = 4 << 20
"""Maximum size of a response without compression. Replies are read up to 200,000 characters."""
MAX_COMPRESSED_BYTES = 64 << 10
"""Maximum size of a compressed response. Deflate expands up to 1,032 times."""
UNCOMPRESSED = ("", "identity", "none", "utf-8", "binary")
"""Content encodings of responses without compression. The last three are mistakes of servers."""
ENCODINGS: tuple[list[str], ...] = ([], ["gzip"], ["deflate"])
"""Content encodings that are read. Requests ask for none, and other ones can expand much further."""


CHARSETS = re.compile(
    r"ascii|utf-(?:8|16|32)(?:-[lb]e)?|iso8859-\d+|cp\d+|mac-\w+|tis-620|shift_jis|euc_\w+|gb\w+|big5|koi8-\w"
)
"""Names, in Python's spelling, of the encodings that a Content-Type may declare. Others of Python's codecs raise errors
on any input, or need time that grows with the square of the input (punycode)."""


class UnreadableResponseError(httpx2.DecodingError):
    """A response that is too large, or that has a content encoding that was not requested."""


class BoundedStream(httpx2.AsyncByteStream):
    """The body of a response, which ends in an error after a number of bytes."""

    def __init__(self, stream: httpx2.AsyncByteStream, limit: int) -> None:
        """
        Args:
            limit: maximum number of bytes.
        """
        self._stream = stream
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > self._limit:
                raise UnreadableResponseError(f"its response has more than {self._limit >> 10} KiB")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def bound_response(response: httpx2.Response) -> None:
    """Limit the size of a response before its body is read. An event hook of the HTTP client.

    Raises:
        UnreadableResponseError: for a content encoding that was not requested.
    """
    encoding = response.headers.get("content-encoding", "").strip().lower()
    packed = [name.strip() for name in encoding.split(",") if name.strip() not in UNCOMPRESSED]
    if packed not in ENCODINGS:
        raise UnreadableResponseError(
            f"its response has the content encoding {encoding!r}, which was not requested"
        )
    assert isinstance(response.stream, httpx2.AsyncByteStream)  # the client is asynchronous
    # The SDKs only quote the text; a codec of Python may raise an error that they do not expect.
    response.encoding = "utf-8"
    response.stream = BoundedStream(response.stream, MAX_COMPRESSED_BYTES if packed else MAX_BYTES)


async def refuse_redirect(response: httpx2.Response) -> None:
    """Refuse redirects that cannot lead to a reply, or lead to another service. An event hook of the HTTP client.

    The request holds a customer's image and the key, which the client removes only from the header `Authorization`.
    Another address can also be a cloud's metadata service, which an error message would quote.

    Raises:
        UnsupportedProtocol: for a redirect that makes the request a GET, or that leads to another host or port. Only
            from http to https the port may change.
    """
    if not response.has_redirect_location:
        return
    source, target = response.url, response.url.join(response.headers["location"])
    upgraded = target.host == source.host and (source.scheme, target.scheme) == ("http", "https")
    if response.status_code in (301, 302, 303) or not (target.origin == source.origin or upgraded):
        raise httpx2.UnsupportedProtocol(
            f"the service redirects to {target} (HTTP {response.status_code}), which is not followed"
        )


def text_of(response: httpx2.Response) -> str:
    """Return the text of a response. JSON is UTF-8, whatever the Content-Type says.

    Other text is decoded as the Content-Type says, or else as its bytes suggest.
    """
    data = response.content[:MAX_BYTES]
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    charset = charset_of(response)
    if not charset:
        try:
            return decode_text(data)
        except UnreadableTextError:
            pass
    return data.decode(charset or "utf-8", "replace")


def charset_of(response: httpx2.Response) -> str:
    """Return the encoding that a Content-Type declares; empty if it declares none, or none of `CHARSETS`."""
    try:
        name = codecs.lookup(response.charset_encoding or "").name
    except (LookupError, ValueError):
        return ""
    return name if CHARSETS.fullmatch(name) else ""
