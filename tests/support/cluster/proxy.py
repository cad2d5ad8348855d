"""A proxy that injects faults into the connection to the API server.

Requests are refused, delayed or cut, responses are lost, and watches end, lag and repeat events.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aiohttp
import yaml
from aiohttp import web

from tests.support.cluster.wire import Object, Wire

HOP_BY_HOP_HEADERS = {
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "accept-encoding",
    "content-encoding",
}
QUOTA = 'jobs.batch "x" is forbidden: exceeded quota: chaos, requested: count/jobs.batch=1'


@dataclass(frozen=True)
class Faults:
    """How often each fault is injected, as probabilities."""

    call: float = 0.12
    """A request has a fault of any kind."""
    delay: float = 0.03
    """An event of a watch, and all after it, come late."""
    repeat: float = 0.05
    """An event of a watch comes twice, or the object's previous state comes again before it."""
    watch_seconds: float = 6.0
    """Mean time after which a watch ends."""


NO_FAULTS = Faults(0, 0, 0, 1e9)
ENDS = {"closed": 4, "cut": 4, "expired": 4, "broken": 1}
"""How a watch may end, with relative weights."""
REFUSALS = {
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
    409: "Conflict",
    410: "Gone",
    403: "Forbidden",
}


class FaultyProxy:
    """An HTTP proxy on loopback in front of an API server, which injects faults."""

    def __init__(self, wire: Wire, seed: str, faults: Faults) -> None:
        self._wire = wire
        self._random = random.Random(seed)
        self.faults = faults
        self.script: list[tuple[str, str, str]] = []
        """Method, end of the path, and fault. Each entry is used once, for the next request that matches."""
        self.frozen: str | None = None
        """While set, watches whose path ends so stay open and send nothing."""
        self.dead = False
        """While set, every connection is cut at once."""
        self._watch_ends: dict[asyncio.Timeout, str] = {}
        self.port = 0
        self.injected: Counter[str] = Counter()
        """Faults injected so far, by kind."""
        self.calls: Counter[tuple[str, str]] = Counter()
        """Requests by method and path, forwarded or not."""
        self.agents: Counter[str] = Counter()
        """Requests by user agent."""
        self.watches = 0
        """Requests that opened a watch."""

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._wire.ssl, limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
            read_bufsize=2**22,
        )
        # a request whose client has disconnected is not forwarded later
        server = web.Server(self._handle, handler_cancellation=True)  # type: ignore[arg-type]
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def write_kubeconfig(self, path: Path) -> Path:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "u", "user": {"token": self._wire.token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(yaml.safe_dump(config))
        return path

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.calls[(request.method, request.path)] += 1
        self.agents[request.headers.get("User-Agent", "")] += 1
        self.watches += "watch" in request.query
        fault = "reset" if self.dead else self._scripted_fault(request) or self._random_fault(request)
        if fault:
            self.injected[f"{request.method} {fault}"] += 1
        if fault == "reset":
            return _abort(request)
        if fault == "late":
            await asyncio.sleep(self._random.uniform(0.05, 1.0))
        if fault.isdigit():
            return _refuse(int(fault))
        body = await request.read() or None
        headers = {
            name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP_HEADERS
        }
        url = self._wire.server + request.raw_path
        try:
            async with self._session.request(
                request.method, aiohttp.client.URL(url, encoded=True), data=body, headers=headers
            ) as answer:
                if "watch" in request.query and answer.status == 200:
                    return await self._stream(request, answer)
                text = await answer.read()
        except aiohttp.ClientError:
            return _abort(request)
        if fault == "lost answer":
            return _abort(request)
        return web.Response(status=answer.status, body=text, content_type=answer.content_type)

    def end_watches(self, how: str) -> None:
        """End the watches that are open now: `closed`, `cut`, `expired` (410) or `broken` (500)."""
        for timeout in self._watch_ends:
            self._watch_ends[timeout] = how
            timeout.reschedule(asyncio.get_running_loop().time())

    def _scripted_fault(self, request: web.BaseRequest) -> str:
        for entry in self.script:
            method, path, fault = entry
            if request.method == method and request.path.endswith(path):
                self.script.remove(entry)
                return fault
        return ""

    def _random_fault(self, request: web.BaseRequest) -> str:
        if self._random.random() >= self.faults.call:
            return ""
        kinds = ["reset", "late", "late", "lost answer", "429", "500", "503", "504"]
        if request.method != "GET":
            kinds += ["lost answer", "409"]
        if request.method == "POST" and request.path.endswith("/jobs"):
            kinds += ["403"]
        if "watch" in request.query:
            kinds = ["reset", "late", "429", "500", "503", "410"]
        return self._random.choice(kinds)

    async def _stream(self, request: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        before: dict[str, bytes] = {}
        timeout = asyncio.timeout(self._random.expovariate(1 / self.faults.watch_seconds))
        try:
            async with timeout:
                self._watch_ends[timeout] = self._random.choices(list(ENDS), list(ENDS.values()))[0]
                async for line in answer.content:
                    for part in self._repeat(line, before):
                        await self._delay(request)
                        await response.write(part)
        except TimeoutError:
            return await self._end(request, response, self._watch_ends[timeout])
        finally:
            self._watch_ends.pop(timeout, None)
        return response

    def _repeat(self, line: bytes, before: dict[str, bytes]) -> list[bytes]:
        event: Object = json.loads(line)
        uid = event["object"]["metadata"].get("uid", "")
        old = before.get(uid)
        if event["type"] in ("ADDED", "MODIFIED"):
            before[uid] = line
        if not uid or self._random.random() >= self.faults.repeat:
            return [line]
        stale = old is not None and self._random.random() < 0.5
        self.injected["event stale" if stale else "event twice"] += 1
        return [old, line] if stale and old is not None else [line, line]

    async def _delay(self, request: web.BaseRequest) -> None:
        if self._random.random() < self.faults.delay:
            self.injected["event late"] += 1
            await asyncio.sleep(self._random.uniform(0.1, 2.0))
        while self.frozen is not None and request.path.endswith(self.frozen):
            await asyncio.sleep(0.05)

    async def _end(
        self, request: web.BaseRequest, response: web.StreamResponse, how: str
    ) -> web.StreamResponse:
        self.injected[f"watch {how}"] += 1
        if how == "cut":
            await response.write(b'{"type":"MODIFIED","object":{"meta')
            return _abort(request)
        if how in ("expired", "broken"):
            status = _status(410 if how == "expired" else 500)
            await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
        return response


def _abort(request: web.BaseRequest) -> web.Response:
    """Cut the connection. The response is never sent; aiohttp requires one."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _status(code: int) -> Object:
    message = QUOTA if code == 403 else f"chaos says {code}"
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": REFUSALS[code],
        "code": code,
    }


def _refuse(code: int) -> web.Response:
    headers = {"Retry-After": "1"} if code == 429 else {}
    return web.json_response(_status(code), status=code, headers=headers)
