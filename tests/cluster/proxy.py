"""A bad line to the API server: answers that are lost, refused, late or wrong; watches that stop, stutter and lie."""

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
from wire import Object, Wire

HOP = {"host", "connection", "content-length", "transfer-encoding", "accept-encoding", "content-encoding"}
QUOTA = 'jobs.batch "x" is forbidden: exceeded quota: chaos, requested: count/jobs.batch=1'


@dataclass(frozen=True)
class Faults:
    """How often each thing goes wrong, as probabilities."""

    call: float = 0.12
    """Of a request, all kinds together."""
    stutter: float = 0.03
    """Of an event of a watch: it and all after it come late."""
    repeat: float = 0.05
    """Of an event of a watch: it comes twice, or the object's state before it comes again first."""
    watch_seconds: float = 6.0
    """The mean life of a watch."""


NONE = Faults(0, 0, 0, 1e9)
ENDS = {"closed": 4, "cut": 4, "expired": 4, "broken": 1}
"""How a watch may end, and how often one way beside the others."""
REFUSALS = {
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
    409: "Conflict",
    410: "Gone",
    403: "Forbidden",
}


class BadLine:
    """An HTTP proxy on loopback in front of an API server."""

    def __init__(self, wire: Wire, seed: str, faults: Faults) -> None:
        self._wire = wire
        self._random = random.Random(seed)
        self.faults = faults
        self.script: list[tuple[str, str, str]] = []
        """Faults to come: of the next request with this method whose path ends so, what goes wrong."""
        self.frozen: str | None = None
        """While set, watches whose path ends so stay open and say nothing."""
        self.dead = False
        """While set, every connection is cut at once."""
        self._lives: dict[asyncio.Timeout, str] = {}
        self.port = 0
        self.done: Counter[str] = Counter()
        """What has gone wrong so far."""
        self.calls: Counter[tuple[str, str]] = Counter()
        """Requests by method and path, forwarded or not."""
        self.watches = 0
        """How many of them opened a watch."""

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._wire.ssl, limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
            read_bufsize=2**22,
        )
        # a request whose client has gone away is not sent on later
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
        self.watches += "watch" in request.query
        fault = "reset" if self.dead else self._scripted(request) or self._draw(request)
        if fault:
            self.done[f"{request.method} {fault}"] += 1
        if fault == "reset":
            return _abort(request)
        if fault == "late":
            await asyncio.sleep(self._random.uniform(0.05, 1.0))
        if fault.isdigit():
            return _refuse(int(fault))
        body = await request.read() or None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
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
        """End those that are open now: closed, cut, expired (410) or broken (500)."""
        for life in self._lives:
            self._lives[life] = how
            life.reschedule(asyncio.get_running_loop().time())

    def _scripted(self, request: web.BaseRequest) -> str:
        for entry in self.script:
            method, path, fault = entry
            if request.method == method and request.path.endswith(path):
                self.script.remove(entry)
                return fault
        return ""

    def _draw(self, request: web.BaseRequest) -> str:
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
        life = asyncio.timeout(self._random.expovariate(1 / self.faults.watch_seconds))
        try:
            async with life:
                self._lives[life] = self._random.choices(list(ENDS), list(ENDS.values()))[0]
                async for line in answer.content:
                    for part in self._garble(line, before):
                        await self._stutter(request)
                        await response.write(part)
        except TimeoutError:
            return await self._end(request, response, self._lives[life])
        finally:
            self._lives.pop(life, None)
        return response

    def _garble(self, line: bytes, before: dict[str, bytes]) -> list[bytes]:
        event: Object = json.loads(line)
        uid = event["object"]["metadata"].get("uid", "")
        old = before.get(uid)
        if event["type"] in ("ADDED", "MODIFIED"):
            before[uid] = line
        if not uid or self._random.random() >= self.faults.repeat:
            return [line]
        stale = old is not None and self._random.random() < 0.5
        self.done["event stale" if stale else "event twice"] += 1
        return [old, line] if stale and old is not None else [line, line]

    async def _stutter(self, request: web.BaseRequest) -> None:
        if self._random.random() < self.faults.stutter:
            self.done["event late"] += 1
            await asyncio.sleep(self._random.uniform(0.1, 2.0))
        while self.frozen is not None and request.path.endswith(self.frozen):
            await asyncio.sleep(0.05)

    async def _end(
        self, request: web.BaseRequest, response: web.StreamResponse, how: str
    ) -> web.StreamResponse:
        self.done[f"watch {how}"] += 1
        if how == "cut":
            await response.write(b'{"type":"MODIFIED","object":{"meta')
            return _abort(request)
        if how in ("expired", "broken"):
            status = _status(410 if how == "expired" else 500)
            await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
        return response


def _abort(request: web.BaseRequest) -> web.Response:
    """Cut the connection; the response that is returned goes nowhere."""
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
