"""Client for LoraTrainingJobs that uses the kubeconfig, and so the permissions, of the user."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from aiohttp import ClientError, ClientTimeout
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from lora_operator import names
from lora_operator.api import EVENTS, OK, PODS, RESOURCES, Api, NotServedError, Object, read_message

from ..errors import ClusterError, ClusterRefusedError, ClusterUnavailableError

GONE, SERVER_ERROR = 410, 500
WATCH_SECONDS = 240
"""Time after which the API server ends a watch. The next watch continues from the last resourceVersion."""
ANONYMOUS = "system:anonymous"
"""User of a request without credentials. It is sent if the kubeconfig's user has none, or its plugin fails."""
NO_RESOURCE = "this cluster does not serve LoraTrainingJobs: install the chart first (docs/how-to/install.md)"
Change = tuple[str, Object]
"""ADDED, MODIFIED or DELETED, and the job after the change."""
Result = TypeVar("Result")


class WatchExpiredError(Exception):
    """The API server no longer has the resourceVersion to watch from. The jobs must be listed again."""


class LoraTrainingJobClient(Api):
    """Reads, creates and changes LoraTrainingJobs, and reads the logs of their pods."""

    def __init__(self, connection: client.ApiClient, namespace: str) -> None:
        """
        Args:
            namespace: namespace of all requests that are not for all namespaces.
        """
        super().__init__(connection)
        self.namespace = namespace

    @property
    def host(self) -> str:
        """The API server's URL."""
        return str(self._connection.configuration.host)

    async def get(self, name: str) -> Object:
        return await self.read(RESOURCES, self.namespace, name)

    async def list_all(self, everywhere: bool = False) -> tuple[list[Object], int]:
        """List the jobs of a namespace, or of all, with the resourceVersion of the list."""
        jobs: list[Object] = []
        version = 0
        async for items, listed in self.list_pages(RESOURCES, "" if everywhere else self.namespace):
            jobs += items
            version = listed
        return jobs, version

    async def submit(self, body: Object, dry_run: bool = False) -> Object:
        """Create a job. The API server refuses fields that it does not know.

        Args:
            dry_run: let the API server check the job without creating it.
        """
        # Without Strict, the API server drops unknown fields silently, and the job trains with the defaults.
        query = {"fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
        return await self._call("POST", RESOURCES.path(self.namespace), query, body)

    async def delete_job(self, name: str, uid: str) -> None:
        """Delete one job and, in the background, its children."""
        await self.delete(RESOURCES, self.namespace, name, uid)

    async def patch_spec(self, name: str, spec: Object) -> Object:
        """Merge fields into a job's spec."""
        return await self._call("PATCH", RESOURCES.path(self.namespace, name), body={"spec": spec})

    async def changes(self, since: int, everywhere: bool = False) -> AsyncGenerator[Change, None]:
        """Watch jobs from a resourceVersion, until the API server ends the watch.

        Raises:
            WatchExpiredError: when the API server no longer has that version.
        """
        query = {"watch": "true", "resourceVersion": since, "timeoutSeconds": WATCH_SECONDS}
        path = RESOURCES.path("" if everywhere else self.namespace)
        async with aclosing(self._lines(path, query)) as lines:
            async for line in lines:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    code, message = event["object"].get("code"), event["object"].get("message")
                    raise WatchExpiredError if code == GONE else ApiException(status=code, reason=message)
                yield event["type"], event["object"]

    async def pods(self, uid: str) -> list[Object]:
        """List a job's pods, oldest first."""
        pods: list[Object] = []
        async for items, _ in self.list_pages(PODS, self.namespace, {names.JOB_UID: uid}):
            pods += items
        return sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    async def events(self, uid: str) -> list[Object]:
        """List the Events of a job, oldest first."""
        events: list[Object] = []
        async for items, _ in self.list_pages(EVENTS, self.namespace, fields=f"regarding.uid={uid}"):
            events += items
        return sorted(events, key=lambda event: str(event["metadata"]["creationTimestamp"]))

    async def log(self, pod: str, follow: bool) -> AsyncIterator[str]:
        """Yield the lines of a pod's log. With `follow`, continue until the pod ends."""
        query = {"follow": "true"} if follow else {}
        async for line in self._lines(PODS.path(self.namespace, pod, "log"), query):
            yield line.decode(errors="replace").rstrip("\n")

    async def _lines(self, path: str, query: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a response as they arrive, without a limit of time."""
        request = await self._connection.param_serialize(
            "GET", path, query_params=list(query.items()), auth_settings=["BearerToken"]
        )
        response: Any = await self._connection.call_api(
            *request, _request_timeout=ClientTimeout(total=None, sock_connect=10)
        )
        if response.status != OK:
            raise ApiException(
                status=response.status, reason=read_message(await response.read()) or response.reason
            )
        try:
            async for line in response.response.content:
                yield line
        finally:
            # If the caller stops early, the rest of the response is unread, and the connection cannot be reused.
            response.response.close()


def on_cluster(
    work: Callable[[LoraTrainingJobClient], Coroutine[Any, Any, Result]],
    context: str = "",
    namespace: str = "",
) -> Result:
    """Connect, run a coroutine with the client, and disconnect."""

    async def connected() -> Result:
        async with connect(context, namespace) as jobs:
            return await work(jobs)

    return asyncio.run(connected())


@asynccontextmanager
async def connect(context: str = "", namespace: str = "") -> AsyncIterator[LoraTrainingJobClient]:
    """Connect to the cluster and the namespace that kubectl would use.

    Raises:
        ClusterError: when a request in the block fails.
    """
    async with open_connection(context, namespace) as jobs:
        with api_errors(jobs):
            yield jobs


@asynccontextmanager
async def open_connection(context: str = "", namespace: str = "") -> AsyncIterator[LoraTrainingJobClient]:
    """Connect as `connect` does, without mapping the errors of requests.

    Raises:
        ClusterError: when no cluster is configured, or the kubeconfig has no such context.
    """
    loader: Any = config
    try:
        file = os.environ.get("KUBECONFIG") or "~/.kube/config"
        if not any(Path(part).expanduser().is_file() for part in file.split(os.pathsep)):
            raise ClusterError(
                f"no cluster is configured: {file} does not exist; set KUBECONFIG to the file of your cluster, or "
                "train on this machine with `lora train`"
            )
        contexts, active = loader.list_kube_config_contexts(file)
        chosen = next((c for c in contexts if c["name"] == context), None) if context else active
        if chosen is None:
            known = ", ".join(c["name"] for c in contexts)
            raise ClusterError(f"the kubeconfig has no context {context!r}; it has: {known}")
        await loader.load_kube_config(file, context=chosen["name"])
    except (config.ConfigException, OSError) as error:
        raise ClusterError(
            f"no cluster is configured ({error}): set KUBECONFIG, or try `kubectl config get-contexts`"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError):
        # The library expects a well-formed file, and does not check it.
        raise ClusterError(
            f"{file} is not a valid kubeconfig: set KUBECONFIG to the file of your cluster; `kubectl config view` "
            "may show what is wrong"
        ) from None
    async with client.ApiClient() as connection:
        yield LoraTrainingJobClient(connection, namespace or chosen["context"].get("namespace") or "default")


@contextmanager
def api_errors(jobs: LoraTrainingJobClient) -> Iterator[None]:
    """Map every error of the API client to a ClusterError. This is the only place that maps them."""
    try:
        yield
    except ApiException as error:
        raise _explain(error, jobs.namespace) from None
    except NotServedError:
        raise ClusterError(NO_RESOURCE) from None
    except BrokenPipeError:
        raise  # the reader of stdout has ended, as `head` does; aiohttp has a class of its own for a closed connection
    except (ClientError, TimeoutError, OSError) as error:
        raise ClusterUnavailableError(
            f"the API server at {jobs.host} cannot be reached: {error or type(error).__name__}"
        ) from None


def _explain(error: ApiException, namespace: str) -> ClusterError:
    reason = str(error.reason)
    match error.status:
        case 401 | 403 if error.status == 401 or ANONYMOUS in reason:
            return ClusterRefusedError(
                f"the API server does not know who you are ({reason}): log in to the cluster again"
            )
        case 403:
            return ClusterRefusedError(f"{reason}: ask the cluster's administrator for that permission")
        case 404 if "page not found" in reason:  # the resource type, not the object, is unknown
            return ClusterError(NO_RESOURCE)
        case 404 if reason.startswith("namespaces "):
            return ClusterError(
                f"there is no namespace {namespace!r}: `kubectl get namespaces` lists those of the cluster"
            )
        case 404:
            return ClusterError(
                f"{reason} in namespace {namespace!r}: `lora list --all-namespaces` shows the jobs that you may see"
            )
        case 409:
            return ClusterError(f"{reason}: give it another name, or delete the existing one")
        case int(status) if status >= SERVER_ERROR:
            return ClusterUnavailableError(f"the API server failed ({status}): {reason}; try again")
        case _:
            return ClusterError(reason)
