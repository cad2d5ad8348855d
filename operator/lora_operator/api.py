"""Client for the API server that handles objects as plain data.

The generated models of `kubernetes` are not used, because they take 30 MB of memory and milliseconds for each object.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from lora_api import GROUP, PLURAL, VERSION, __version__

from . import names

OK, CREATED, ACCEPTED = 200, 201, 202
BAD_REQUEST, FORBIDDEN, NOT_FOUND, CONFLICT, INVALID = 400, 403, 404, 409, 422
PAGE_SIZE = 100
MAX_PAGE_BYTES = 16 << 20
"""Maximum size of a page of a list. A tenant can give the operator's labels to Jobs and pods of a megabyte each, and
write as large Events; a larger page is listed again with fewer objects."""

Object = Mapping[str, Any]
Page = tuple[list[Object], int]
"""The objects of a page, and the resourceVersion of the whole list."""


@dataclass(frozen=True)
class Kind:
    """A kind of objects, and the labels that select the operator's own."""

    group: str
    version: str
    plural: str
    labels: Mapping[str, str] = field(default_factory=dict)
    page_size: int = PAGE_SIZE
    """Objects in a page of a list."""

    def path(self, namespace: str = "", name: str = "", part: str = "") -> str:
        """Return the path of an object, of its subresource `part`, of a namespace's objects or of all objects."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parent = f"/namespaces/{namespace}" if namespace else ""
        return root + parent + "".join(f"/{word}" for word in (self.plural, name, part) if word)


OWN_LABELS = {names.MANAGED_BY: names.OPERATOR}
RESOURCES = Kind(GROUP, VERSION, PLURAL, page_size=25)
"""Pages are small, because a tenant can write a resource of a megabyte."""
BATCH_JOBS = Kind("batch", "v1", "jobs", OWN_LABELS)
PODS = Kind("", "v1", "pods", OWN_LABELS)
EVENTS = Kind("events.k8s.io", "v1", "events", page_size=500)
LEASES = Kind("coordination.k8s.io", "v1", "leases")
TOKEN_REVIEWS = Kind("authentication.k8s.io", "v1", "tokenreviews")
ACCESS_REVIEWS = Kind("authorization.k8s.io", "v1", "subjectaccessreviews")


class NotServedError(Exception):
    """The API server does not serve a kind of objects."""

    def __init__(self, plural: str) -> None:
        super().__init__(
            f"the API server does not serve {plural}: is the CustomResourceDefinition installed?"
        )


class LargePageError(Exception):
    """A page of a list has more than `MAX_PAGE_BYTES`."""


MANAGER = "lora-operator"
"""The operator's field manager."""
USER_AGENT = f"{MANAGER}/{__version__}"
"""The user agent of all requests, also of the watches."""


async def connect() -> client.ApiClient:
    """Create a client with the pod's service account or, outside a cluster, with the current kubeconfig."""
    loader: Any = config
    try:
        loader.load_incluster_config()
    except config.ConfigException:
        await loader.load_kube_config()
    configuration = client.Configuration.get_default_copy()
    # proxies from the environment are not meant for the API server, and aiohttp looks them up for every request
    configuration.client_session_kwargs = {"trust_env": False}
    connection = client.ApiClient(configuration)
    connection.user_agent = USER_AGENT
    return connection


class Api:
    """Verbs for the kinds above.

    Every method raises ApiException, with the API server's status and message, or aiohttp's ClientError.
    """

    def __init__(
        self, connection: client.ApiClient, namespaces: tuple[str, ...] = (), manager: str = MANAGER
    ) -> None:
        """Create a client.

        Args:
            connection: the authenticated connection.
            namespaces: the namespaces to list; none for the whole cluster.
            manager: the field manager of all writes.
        """
        self._connection = connection
        self._manager = manager
        self._namespaces = namespaces or ("",)

    async def read(self, kind: Kind, namespace: str, name: str) -> Object:
        return await self._call("GET", kind.path(namespace, name))

    async def list_pages(
        self, kind: Kind, namespace: str = "", labels: Object | None = None, fields: str = ""
    ) -> AsyncIterator[Page]:
        """List objects page by page, so that thousands of any size take little memory.

        Args:
            kind: the kind, whose labels select the operator's own.
            namespace: a namespace; empty for all that the operator watches.
            labels: more labels to select by.
            fields: a field selector.

        Raises:
            NotServedError: when the kind is not installed.
        """
        selector = ",".join(f"{name}={value}" for name, value in {**kind.labels, **(labels or {})}.items())
        for scope in (namespace,) if namespace else self._namespaces:
            query: dict[str, Any] = {
                "limit": kind.page_size,
                "labelSelector": selector,
                "fieldSelector": fields,
                "continue": "",
            }
            while True:
                try:
                    listed = await self._call("GET", kind.path(scope), query, max_bytes=MAX_PAGE_BYTES)
                except LargePageError:
                    if query["limit"] == 1:
                        raise ApiException(
                            reason=f"one of the {kind.plural} is too large to be read"
                        ) from None
                    query["limit"] = max(int(query["limit"]) // 4, 1)
                    continue
                except ApiException as error:
                    if error.status == NOT_FOUND:
                        raise NotServedError(kind.plural) from None
                    raise
                yield listed["items"], int(listed["metadata"]["resourceVersion"])
                query["continue"] = listed["metadata"].get("continue", "")
                if not query["continue"]:
                    break

    async def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        """Create an object; return it with everything that the API server added."""
        return await self._call("POST", kind.path(namespace), body=body)

    async def replace(self, kind: Kind, namespace: str, name: str, body: Object) -> None:
        await self._call("PUT", kind.path(namespace, name), body=body)

    async def patch(self, kind: Kind, namespace: str, name: str, changes: Object) -> Object:
        """Merge changes into an object; a UID among them makes it conditional."""
        return await self._call("PATCH", kind.path(namespace, name), body=changes)

    async def patch_status(self, kind: Kind, namespace: str, name: str, changes: Object) -> Object:
        """Merge changes into the status; a resourceVersion among them makes it conditional."""
        return await self._call("PATCH", kind.path(namespace, name, "status"), body=changes)

    async def delete(
        self, kind: Kind, namespace: str, name: str, uid: str, propagation: str = "Background"
    ) -> None:
        """Delete the object with this UID. Does nothing if it is gone, or if another object has its name."""
        options = {"propagationPolicy": propagation, "preconditions": {"uid": uid}}
        try:
            await self._call("DELETE", kind.path(namespace, name), body=options)
        except ApiException as error:
            if error.status not in (NOT_FOUND, CONFLICT):
                raise

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Object | None = None,
        max_bytes: int = 0,
    ) -> Object:
        """Send a request.

        Args:
            max_bytes: maximum size of the response; 0 for one object, which the API server bounds.

        Raises:
            LargePageError: when the response is larger.
        """
        headers = {"Accept": "application/json"}
        if method in ("POST", "PUT", "PATCH"):
            query = {**(query or {}), "fieldManager": self._manager}
        if method == "PATCH":
            headers["Content-Type"] = "application/merge-patch+json"
        request = await self._connection.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        response: Any = await self._connection.call_api(*request)
        text = await _read_at_most(response.response, max_bytes) if max_bytes else await response.read()
        if response.status not in (OK, CREATED, ACCEPTED):
            raise ApiException(status=response.status, reason=read_message(text) or response.reason)
        result: Object = json.loads(text)
        return result


async def _read_at_most(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    text = bytearray()
    async with response:
        async for chunk in response.content.iter_chunked(1 << 16):
            text += chunk
            if len(text) > max_bytes:
                response.close()  # the connection cannot be used again
                raise LargePageError
    return bytes(text)


def read_message(text: bytes) -> str:
    """Return the message of an error; empty when the body is not the API server's."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return ""
