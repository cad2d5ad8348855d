"""A client for the API server that handles objects as JSON data, without models, and sends many requests at once."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml
from kubernetes import client

Object = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"
CONNECTION_ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError)


class WireError(RuntimeError):
    """The API server refused a request."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text[:300]}")
        self.status = status


class Wire:
    """A client for one event loop; use it as an async context manager."""

    def __init__(self, server: str, token: str, authority: str = "") -> None:
        self.server = server
        self.token = token
        self.ssl: ssl.SSLContext | bool = ssl.create_default_context(cafile=authority) if authority else False
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def of(cls, api: client.ApiClient) -> Wire:
        """Connect as the user of an official client."""
        found = api.configuration
        return cls(found.host, found.api_key["BearerToken"].removeprefix("Bearer "), found.ssl_ca_cert)

    @classmethod
    def read(cls, kubeconfig: Path) -> Wire:
        found = yaml.safe_load(kubeconfig.read_text())
        cluster = found["clusters"][0]["cluster"]
        token = found["users"][0]["user"]["token"]
        return cls(cluster["server"], token, cluster.get("certificate-authority", ""))

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self.token}"},
            connector=aiohttp.TCPConnector(ssl=self.ssl, limit=64),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
            read_bufsize=2**22,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()
        await asyncio.sleep(0.1)  # for TLS connections to be gone

    async def call(self, method: str, path: str, body: Any = None, **query: Any) -> Object:
        """Send one request, and return the JSON of the response.

        Raises:
            WireError: with the server's status.
        """
        assert self._session is not None
        kind = MERGE_PATCH if method == "PATCH" else "application/json"
        data = None if body is None else json.dumps(body)
        async with self._session.request(
            method, self.server + path, data=data, params=query, headers={"Content-Type": kind}
        ) as response:
            text = await response.text()
            if response.status >= 300:
                raise WireError(response.status, text)
            found: Object = json.loads(text)
            return found

    async def follow(self, path: str, **query: Any) -> AsyncIterator[tuple[str, Object]]:
        """List, then watch without end. Yields ADDED, MODIFIED or DELETED, and the object.

        Resumes when the server is back; objects that were deleted meanwhile are reported as DELETED.
        """
        known: dict[str, Object] = {}
        while True:
            try:
                found = await self.call("GET", path, **query)
                gone = known.keys() - {item["metadata"]["uid"] for item in found["items"]}
                for uid in gone:
                    yield "DELETED", known.pop(uid)
                for item in found["items"]:
                    known[item["metadata"]["uid"]] = item
                    yield "ADDED", item
                async for kind, item in self._watch(path, found["metadata"]["resourceVersion"], **query):
                    if kind == "DELETED":
                        known.pop(item["metadata"]["uid"], None)
                    else:
                        known[item["metadata"]["uid"]] = item
                    yield kind, item
            except (*CONNECTION_ERRORS, WireError):
                await asyncio.sleep(0.1)

    async def _watch(self, path: str, version: str, **query: Any) -> AsyncIterator[tuple[str, Object]]:
        """Yield events until the server reports that the resourceVersion has expired."""
        assert self._session is not None
        while True:
            asked = {**query, "watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
            async with self._session.get(self.server + path, params=asked) as response:
                if response.status != 200:
                    raise WireError(response.status, await response.text())
                async for line in response.content:
                    event = json.loads(line)
                    kind, item = event["type"], event["object"]
                    if kind == "ERROR":
                        raise WireError(item.get("code", 500), item.get("message", ""))
                    version = item["metadata"]["resourceVersion"]
                    if kind != "BOOKMARK":
                        yield kind, item
