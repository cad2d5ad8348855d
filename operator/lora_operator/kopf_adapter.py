"""Wrapper around kopf, which no other module imports.

kopf brings the watches (listing, resuming, backing off, reconnecting) and the login. Its handlers for changes
are not used: they act on the event that came, while this operator decides from everything it knows about a
job. Four things follow from that, all of them here:

- kopf's storages are replaced by empty ones. Otherwise it would copy every object to look for its handlers' data.
- `spawn_tasks` and a private `Identity` are used in place of `kopf.run`, which takes over the event loop.
- The service account's token is read again every ten minutes, because the kubelet rotates it.
- The process exits when kopf does not stop by itself (see `run_watches`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from socket import gethostname
from typing import Any

import kopf
from kopf._core.engines.peering import Identity

from lora_api.exits import ExitCode

from .api import RESOURCES, USER_AGENT, Kind, Object

TOKEN_LIFETIME = timedelta(minutes=10)
STOP_SECONDS = 15.0
"""Time for kopf to stop once one of its tasks has ended. After it, the process exits."""


@dataclass(frozen=True)
class Watch:
    """A kind of objects to watch, and the function that receives their events."""

    kind: Kind
    receive: Callable[[str | None, Object], None]
    """Gets the event's type and the object. The type is None for an object of a new list. An object that has lost the
    operator's labels counts as deleted, as in a watch with a label selector, which kopf does not use."""
    holds: Callable[[Object], bool]
    """Whether the cache has an object, of which `metadata` is read."""

    def selects(self, body: Object) -> bool:
        """Return whether an object has the operator's labels."""
        return self.kind.labels.items() <= (body["metadata"].get("labels") or {}).items()


async def run_watches(
    watches: Sequence[Watch],
    namespaces: Sequence[str],
    stop: asyncio.Event,
    started: Callable[[], None],
    stopped: Callable[[], Awaitable[None]],
) -> None:
    """Watch until `stop` is set.

    Args:
        namespaces: the namespaces to watch; none for the whole cluster.
        started: called before the first event is delivered.
        stopped: awaited after the last one.

    Raises:
        Exception: the error that ended a watch. Nothing is lost: start a new process.
    """
    before = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=_build_registry(watches, started, stopped),
        # kopf's own default asks for the user's name, and a pod's user has none
        identity=Identity(gethostname()),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=list(namespaces),
        stop_flag=stop,
    )
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    stop.set()  # kopf handles the signals from here on, and waits for this event at its end
    # A watch that fails while another one logs in again makes kopf deadlock. Nothing can be awaited
    # then, so the process exits and Kubernetes starts it again.
    exit_if_hung = asyncio.get_running_loop().call_later(STOP_SECONDS, os._exit, ExitCode.INTERNAL)
    await kopf.run_tasks(tasks, ignored=before)
    exit_if_hung.cancel()


def _build_registry(
    watches: Sequence[Watch], started: Callable[[], None], stopped: Callable[[], Awaitable[None]]
) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        _configure(settings)
        started()

    async def stop(**_: Any) -> None:
        await stopped()

    def handler(watch: Watch) -> Callable[..., Awaitable[None]]:
        async def receive(event: kopf.RawEvent, **_: Any) -> None:
            body = event["object"]
            watch.receive(event["type"] if watch.selects(body) else "DELETED", body)

        return receive

    def concerns(watch: Watch) -> Callable[..., bool]:
        return lambda body, **_: watch.selects(body) or watch.holds(body)

    kopf.on.login(registry=registry)(_login)
    kopf.on.startup(registry=registry)(start)
    kopf.on.cleanup(registry=registry)(stop)
    for watch in watches:
        kind = watch.kind
        subscribe = kopf.on.event(
            kind.group, kind.version, kind.plural, when=concerns(watch), registry=registry
        )
        subscribe(handler(watch))
    return registry


def _configure(settings: kopf.OperatorSettings) -> None:
    settings.posting.enabled = False  # `apply` creates the Events
    settings.scanning.disabled = True  # no watches of namespaces and CustomResourceDefinitions
    # the API server ends a watch first; the longer client timeout ends one whose connection hangs
    settings.watching.server_timeout = 600
    settings.watching.client_timeout = 660
    settings.watching.connect_timeout = 30
    settings.watching.chunk_size = RESOURCES.page_size
    settings.queueing.idle_timeout = 0.1  # seconds; kopf keeps a task for each object until then
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.persistence.progress_storage = _NoProgress()


class _Connection(kopf.ConnectionInfo):
    """A connection whose requests name the operator."""

    def as_http_headers(self) -> dict[str, str]:
        return super().as_http_headers() | {"User-Agent": USER_AGENT}


def _login(**arguments: Any) -> kopf.ConnectionInfo | None:
    connection = _find_connection(**arguments)
    if connection is None:
        return None
    return _Connection(**{field.name: getattr(connection, field.name) for field in fields(connection)})


def _find_connection(**arguments: Any) -> kopf.ConnectionInfo | None:
    connection = kopf.login_with_service_account(**arguments)
    if connection is None:
        return kopf.login_with_kubeconfig(**arguments)
    # the address that Kubernetes gives to every pod needs no DNS
    server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    return replace(connection, server=server, expiration=datetime.now(UTC) + TOKEN_LIFETIME)


class _NoDiffBase(kopf.DiffBaseStorage):
    """Stores no last-handled configuration: there are no handlers that compare with it."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """Stores no progress of handlers, because no handlers are registered."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence
