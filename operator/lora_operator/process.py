"""The operator as a process: its probes, its turn to lead where several run, and kopf."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from socket import gethostname
from typing import Any
from uuid import uuid4

import kopf
from aiohttp import web
from kopf._core.engines.peering import Identity
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from lora_api.exits import ExitCode

from . import metrics
from .api import Api, connect
from .handlers import Wiring
from .lease import Lease
from .settings import ProfilesFile, Settings

log = logging.getLogger(__name__)

END_SECONDS = 15.0
"""For kopf to come to its end once a part of it has ended."""


class LeaseLostError(Exception):
    """Another operator leads now, or none can be found out to; a new process stands by."""


async def operate(settings: Settings) -> None:
    """Run until a signal.

    Raises:
        SettingsError: for profiles that cannot be read.
        NotServedError: when our kind of resource is not installed.
        LeaseLostError: when this operator leads no longer.
        Exception: what ended a watch; nothing is lost, start again.
    """
    profiles = ProfilesFile(settings.profiles_file)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with await connect() as connection:
        api = Api(connection, settings.namespaces)
        wiring = Wiring(settings, profiles, api)
        async with _probes(wiring, settings):
            if settings.lease is None:
                await _work(wiring, settings, stop)
                return
            namespace, name = settings.lease
            lease = Lease(api, namespace, name, f"{gethostname()}_{uuid4().hex[:8]}")
            if await _unless(stop, lease.acquire()):
                try:
                    await _lead(wiring, settings, stop, lease)
                finally:
                    await lease.release()


async def _lead(wiring: Wiring, settings: Settings, stop: asyncio.Event, lease: Lease) -> None:
    held = asyncio.create_task(lease.hold())
    held.add_done_callback(lambda _: stop.set())
    try:
        await _work(wiring, settings, stop)
        if held.done():
            raise LeaseLostError
    finally:
        held.cancel()


async def _work(wiring: Wiring, settings: Settings, stop: asyncio.Event) -> None:
    if not await _unless(stop, wiring.prepare()):
        return
    ignored = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=wiring.registry,
        # kopf's own guess asks for a user's name, and the user of a pod has none
        identity=Identity(gethostname()),
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=list(settings.namespaces),
        stop_flag=stop,
    )
    metrics.LEADER.set(1)
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    stop.set()  # kopf takes the signals over, and at its end waits for who waits for this
    metrics.LEADER.set(0)
    # a watch that broke while another one was logging in again leaves kopf waiting for itself
    hung = asyncio.get_running_loop().call_later(END_SECONDS, os._exit, ExitCode.INTERNAL)
    await kopf.run_tasks(tasks, ignored=ignored)
    hung.cancel()


async def _unless(stop: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Do some work unless it is time to stop; whether it was done."""
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(work), asyncio.create_task(stop.wait())]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for task in done:
        task.result()
    return not stop.is_set()


@asynccontextmanager
async def _probes(wiring: Wiring, settings: Settings) -> AsyncIterator[None]:
    """Serve /healthz, /readyz and /metrics: one that stands by is healthy and ready, and leads nothing."""

    async def health(_: web.Request) -> web.Response:
        return _verdict(wiring.sick())

    async def ready(_: web.Request) -> web.Response:
        return _verdict(wiring.sick() or wiring.unready())

    async def measures(_: web.Request) -> web.Response:
        wiring.measure()
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", health), web.get("/readyz", ready), web.get("/metrics", measures)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
        yield
    finally:
        await runner.cleanup()


def _verdict(trouble: str) -> web.Response:
    if trouble:
        log.error("%s", trouble)
    return web.Response(status=503 if trouble else 200, text=f"{trouble or 'ok'}\n")
