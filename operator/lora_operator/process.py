"""The operator's process: health endpoints, leader election, and the watches while it leads."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from socket import gethostname
from typing import Any
from uuid import uuid4

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from lora_api import __version__

from . import metrics
from .api import Api, connect
from .handlers import EventHandlers
from .kopf_adapter import run_watches
from .lease import Lease
from .metrics_access import FORBIDDEN, OK, UNAUTHORIZED, UNAVAILABLE, MetricsAccess
from .settings import ProfilesFile, Settings

log = logging.getLogger(__name__)


METRICS_ERRORS = {
    UNAUTHORIZED: "send a bearer token that the API server accepts",
    FORBIDDEN: "this account needs a ClusterRole with the verb get on the nonResourceURL /metrics",
    UNAVAILABLE: "the token cannot be reviewed now; try again later",
}
"""Text of an answer without metrics, by its status."""


class LeaseLostError(Exception):
    """The Lease was lost, so another replica may lead. The process ends, and its replacement stands by."""


async def operate(settings: Settings) -> None:
    """Run until a signal.

    Raises:
        SettingsError: when the profiles cannot be read.
        NotServedError: when the CustomResourceDefinition is not installed.
        LeaseLostError: when this replica is no longer the leader.
        Exception: the error that ended a watch. Nothing is lost: start a new process.
    """
    profiles = ProfilesFile(settings.profiles_file)
    log.info(
        "lora-operator %s starts: namespaces %s; profiles %s",
        __version__,
        ", ".join(settings.namespaces) or "all",
        ", ".join(sorted(profiles.current())) or "none",
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with await connect() as connection:
        api = Api(connection, settings.namespaces)
        handlers = EventHandlers(settings, profiles, api)
        access = MetricsAccess(api) if settings.metrics_authentication == "Token" else None
        async with _serve_probes(handlers, settings, access):
            if settings.lease is None:
                await _reconcile(handlers, settings, stop)
                return
            namespace, name = settings.lease
            identity = f"{gethostname()}_{uuid4().hex[:8]}"
            lease = Lease(api, namespace, name, identity, settings.pod)
            if await _run_unless(stop, lease.acquire()):
                try:
                    await _lead(handlers, settings, stop, lease)
                finally:
                    await lease.release()


async def _lead(handlers: EventHandlers, settings: Settings, stop: asyncio.Event, lease: Lease) -> None:
    """Reconcile as long as the Lease is held. `hold` returns when the Lease is lost, which stops the watches."""
    held = asyncio.create_task(lease.hold())
    held.add_done_callback(lambda _: stop.set())
    try:
        await _reconcile(handlers, settings, stop)
        if held.done():
            raise LeaseLostError("the Lease is lost, and another replica may lead")
    finally:
        held.cancel()


async def _reconcile(handlers: EventHandlers, settings: Settings, stop: asyncio.Event) -> None:
    if not await _run_unless(stop, handlers.prepare()):
        return
    metrics.LEADER.set(1)
    try:
        await run_watches(handlers.watches, settings.namespaces, stop, handlers.start, handlers.stop)
    finally:
        metrics.LEADER.set(0)


async def _run_unless(stop: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Await `work`, or cancel it when `stop` is set first; return whether it was finished."""
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(work), asyncio.create_task(stop.wait())]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for task in done:
        task.result()  # raises the error of `work`
    return not stop.is_set()


@asynccontextmanager
async def _serve_probes(
    handlers: EventHandlers, settings: Settings, access: MetricsAccess | None
) -> AsyncIterator[None]:
    """Serve /healthz, /readyz and /metrics. A replica that stands by is healthy and ready."""

    async def health(_: web.Request) -> web.Response:
        return _respond(handlers.liveness_error())

    async def ready(_: web.Request) -> web.Response:
        return _respond(handlers.liveness_error() or handlers.readiness_error())

    async def export_metrics(request: web.Request) -> web.Response:
        if access is not None:
            status = await access.check(request.headers.get("Authorization", ""))
            if status != OK:
                headers = {"WWW-Authenticate": "Bearer"} if status == UNAUTHORIZED else {}
                return web.Response(status=status, headers=headers, text=f"{METRICS_ERRORS[status]}\n")
        handlers.update_gauges()
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes(
        [web.get("/healthz", health), web.get("/readyz", ready), web.get("/metrics", export_metrics)]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
        yield
    finally:
        await runner.cleanup()


def _respond(error: str) -> web.Response:
    if error:
        log.error("%s", error)
    return web.Response(status=503 if error else 200, text=f"{error or 'ok'}\n")
