"""kopf wiring, and nothing else: indexes and events in, keys on the queue out."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import kopf
from aiohttp import web
from kopf import OperatorRegistry
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from lora_api import GROUP, PLURAL, VERSION

from . import metrics, names
from .apply import Cluster, connect
from .controller import Controller, Indexes, Key
from .observe import Resource, StepPod, observe_job, observe_step_pod
from .settings import ProfilesFile, Settings
from .snapshot import Child

TOKEN_LIFE = timedelta(minutes=10)
OURS = {names.MANAGED_BY: names.OPERATOR}


class Wiring:
    """One running operator: the registry that kopf reads and the tasks beside it."""

    def __init__(self, settings: Settings, profiles: ProfilesFile) -> None:
        self._settings = settings
        self._profiles = profiles
        self._controller: Controller | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None
        self._api: Any = None
        self.registry = OperatorRegistry()
        self._register()

    def _register(self) -> None:
        registry = self.registry
        kopf.on.login(registry=registry)(_login)
        kopf.on.startup(registry=registry)(self._start)
        kopf.on.cleanup(registry=registry)(self._stop)
        kopf.index(GROUP, VERSION, PLURAL, id="resources", registry=registry)(_index_resource)
        kopf.index("batch", "v1", "jobs", labels=OURS, id="children", registry=registry)(_index_child)
        kopf.index("", "v1", "pods", labels=OURS, id="pods", registry=registry)(_index_pod)
        kopf.on.event(GROUP, VERSION, PLURAL, id="resource", registry=registry)(self._on_resource)
        kopf.on.event("batch", "v1", "jobs", labels=OURS, id="child", registry=registry)(self._on_child)
        kopf.on.event("", "v1", "pods", labels=OURS, id="pod", registry=registry)(self._on_child)

    async def _start(self, settings: kopf.OperatorSettings, **indexes: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.watching.server_timeout = 600
        settings.watching.client_timeout = 660
        settings.watching.connect_timeout = 30
        self._api = await connect()
        seen = Indexes(indexes["resources"], indexes["children"], indexes["pods"])
        cluster = Cluster(self._api, self._settings.images)
        self._controller = Controller(cluster, self._profiles, seen)
        self._controller.queue.start()
        self._tasks = [
            asyncio.create_task(self._controller.poll_forever()),
            asyncio.create_task(self._controller.resync_forever()),
        ]
        await self._serve()

    async def _stop(self, **_: Any) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._controller is not None:
            await self._controller.queue.stop()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._api is not None:
            await self._api.close()

    async def _on_resource(self, namespace: str | None, name: str, **_: Any) -> None:
        self._add((str(namespace), name))

    async def _on_child(self, namespace: str | None, annotations: Mapping[str, str], **_: Any) -> None:
        if name := annotations.get(names.JOB_NAME):
            self._add((str(namespace), name))

    def _add(self, key: Key) -> None:
        assert self._controller is not None
        self._controller.queue.add(key)

    async def _serve(self) -> None:
        app = web.Application()
        app.add_routes([web.get("/healthz", self._health), web.get("/metrics", self._metrics)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._settings.host, self._settings.port).start()

    async def _health(self, _: web.Request) -> web.Response:
        """Healthy as long as no task beside the watches has died; kopf itself ends the process with a watch."""
        dead = [task for task in self._tasks if task.done()]
        return web.Response(status=500 if dead else 200, text="a task has died\n" if dead else "ok\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        assert self._controller is not None
        metrics.QUEUE_DEPTH.set(len(self._controller.queue))
        metrics.JOBS.clear()
        everything = chain.from_iterable(list(self._controller.indexes.resources.values()))
        for phase, count in Counter(resource.phase for resource in everything).items():
            metrics.JOBS.labels(phase).set(count)
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _login(**arguments: Any) -> kopf.ConnectionInfo | None:
    found = kopf.login_with_service_account(**arguments)
    if found is None:
        return kopf.login_with_kubeconfig(**arguments)
    # by the address that every pod is given, not by a DNS name; and read the token anew as it rotates
    server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    return replace(found, server=server, expiration=datetime.now(UTC) + TOKEN_LIFE)


# kopf runs what is not async in threads; these are too small for that


async def _index_resource(namespace: str | None, name: str, body: kopf.Body, **_: Any) -> dict[Key, Resource]:
    return {(str(namespace), name): Resource.of(body)}


async def _index_child(labels: Mapping[str, str], body: kopf.Body, **_: Any) -> dict[str, Child]:
    return {labels[names.JOB_UID]: observe_job(body)}


async def _index_pod(labels: Mapping[str, str], body: kopf.Body, **_: Any) -> dict[str, StepPod]:
    return {labels[names.JOB_UID]: observe_step_pod(body)}
