"""A person's connection to the API server, with their own rights: jobs to read, make and change, and logs."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import ClientError, ClientTimeout
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from .. import names
from ..api import OK, PODS, RESOURCES, Api, Object

GONE = 410
WATCH_SECONDS = 240
"""After so long the API server ends a watch, and the next one goes on from there."""
Change = tuple[str, Object]
"""ADDED, MODIFIED or DELETED, and the job as it is then."""


class ClusterError(RuntimeError):
    """What the cluster refused, or why it cannot be reached; the message says what to do."""


class WatchExpiredError(Exception):
    """The API server does not remember that far back: list again."""


class Jobs(Api):
    """`LoraTrainingJob`s and their pods' logs."""

    def __init__(self, connection: client.ApiClient, namespace: str) -> None:
        """namespace is where jobs are looked for that do not say where they are."""
        super().__init__(connection)
        self.namespace = namespace

    async def get(self, name: str) -> Object:
        return await self.read(RESOURCES, self.namespace, name)

    async def all(self, everywhere: bool = False) -> tuple[list[Object], int]:
        """The jobs of a namespace, or of all, and the resourceVersion that the list is of."""
        found: list[Object] = []
        version = 0
        async for items, listed in self.list_pages(RESOURCES, "" if everywhere else self.namespace):
            found += items
            version = listed
        return found, version

    async def make(self, body: Object, dry_run: bool = False) -> Object:
        """Create a job; with dry_run only hear what the API server would say."""
        query = {"dryRun": "All"} if dry_run else None
        return await self._call("POST", RESOURCES.path(self.namespace), query, body)

    async def change(self, name: str, spec: Object) -> Object:
        """Merge into a job's spec."""
        return await self._call("PATCH", RESOURCES.path(self.namespace, name), body={"spec": spec})

    async def changes(self, since: int, everywhere: bool = False) -> AsyncIterator[Change]:
        """What happens to jobs after a resourceVersion, until the API server ends the watch.

        Raises:
            WatchExpiredError: when that version is too old to go on from.
        """
        query = {"watch": "true", "resourceVersion": since, "timeoutSeconds": WATCH_SECONDS}
        async for line in self._lines(RESOURCES.path("" if everywhere else self.namespace), query):
            event = json.loads(line)
            if event["type"] == "ERROR":
                if event["object"].get("code") == GONE:
                    raise WatchExpiredError
                raise ApiException(status=event["object"].get("code"), reason=event["object"].get("message"))
            yield event["type"], event["object"]

    async def pods(self, uid: str) -> list[Object]:
        """A job's pods, oldest first."""
        found: list[Object] = []
        async for items, _ in self.list_pages(PODS, self.namespace, {names.JOB_UID: uid}):
            found += items
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    async def log(self, pod: str, follow: bool) -> AsyncIterator[str]:
        """The lines of a pod's log; with follow, until it ends."""
        query = {"follow": "true"} if follow else {}
        async for line in self._lines(PODS.path(self.namespace, pod, "log"), query):
            yield line.decode(errors="replace").rstrip("\n")

    async def _lines(self, path: str, query: dict[str, Any]) -> AsyncIterator[bytes]:
        request = await self._connection.param_serialize(
            "GET", path, query_params=list(query.items()), auth_settings=["BearerToken"]
        )
        response: Any = await self._connection.call_api(
            *request, _request_timeout=ClientTimeout(total=None, sock_connect=10)
        )
        if response.status != OK:
            raise ApiException(status=response.status, reason=(await response.read()).decode())
        async for line in response.response.content:
            yield line


@asynccontextmanager
async def connect(context: str = "", namespace: str = "") -> AsyncIterator[Jobs]:
    """Jobs in the cluster that kubectl would use, in the namespace that it would use.

    Raises:
        ClusterError: for all that goes wrong in the block, in plain words.
    """
    loader: Any = config
    try:
        file = os.environ.get("KUBECONFIG") or "~/.kube/config"
        contexts, active = loader.list_kube_config_contexts(file)
        chosen = next((c for c in contexts if c["name"] == context), None) if context else active
        if chosen is None:
            known = ", ".join(c["name"] for c in contexts)
            raise ClusterError(f"the kubeconfig has no context {context!r}; it has: {known}")
        await loader.load_kube_config(file, context=chosen["name"])
    except (config.ConfigException, OSError) as error:
        raise ClusterError(
            f"no cluster to talk to ({error}): set KUBECONFIG, or try `kubectl config get-contexts`"
        ) from None
    async with client.ApiClient() as connection:
        jobs = Jobs(connection, namespace or chosen["context"].get("namespace") or "default")
        try:
            yield jobs
        except ApiException as error:
            raise ClusterError(_explain(error, jobs.namespace)) from None
        except (ClientError, TimeoutError, OSError) as error:
            host = connection.configuration.host
            raise ClusterError(
                f"the API server at {host} cannot be reached: {error or type(error).__name__}"
            ) from None


def _explain(error: ApiException, namespace: str) -> str:
    said = str(error.reason)
    match error.status:
        case 401:
            return f"the API server does not know who you are ({said}): log in to the cluster again"
        case 403:
            return f"{said}: ask the cluster's administrator for that right"
        case 404 if "page not found" in said:
            return "this cluster has no LoraTrainingJobs: install the chart first (docs/install.md)"
        case 404:
            return f"{said} in namespace {namespace!r}: `lora list --all-namespaces` shows what is there"
        case 409:
            return f"{said}: give it another name, or delete the one that is there"
        case _:
            return said
