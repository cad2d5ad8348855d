"""The API server's objects as plain data: a few verbs for the few kinds that we know.

The generated classes of `kubernetes` stand for all of Kubernetes: they take 30 MB, and milliseconds for each object.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from lora_api import GROUP, PLURAL, VERSION

from . import names

OK, CREATED, ACCEPTED = 200, 201, 202
BAD_REQUEST, FORBIDDEN, NOT_FOUND, CONFLICT, INVALID = 400, 403, 404, 409, 422
PAGE_SIZE = 100

Object = Mapping[str, Any]
Page = tuple[list[Object], int]
"""Objects, and the resourceVersion that the whole list is of."""


@dataclass(frozen=True)
class Kind:
    """One kind of objects, and by which labels those are found that are ours."""

    group: str
    version: str
    plural: str
    labels: Mapping[str, str] = field(default_factory=dict)

    def path(self, namespace: str = "", name: str = "", part: str = "") -> str:
        """Of one object, of a part of it, of all in a namespace or of all."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        place = f"/namespaces/{namespace}" if namespace else ""
        return root + place + "".join(f"/{word}" for word in (self.plural, name, part) if word)


OURS = {names.MANAGED_BY: names.OPERATOR}
RESOURCES = Kind(GROUP, VERSION, PLURAL)
JOBS = Kind("batch", "v1", "jobs", OURS)
PODS = Kind("", "v1", "pods", OURS)
EVENTS = Kind("events.k8s.io", "v1", "events")
LEASES = Kind("coordination.k8s.io", "v1", "leases")


class NotServedError(Exception):
    """The API server does not know a kind of object."""

    def __init__(self, plural: str) -> None:
        super().__init__(
            f"the API server does not serve {plural}: is the CustomResourceDefinition installed?"
        )


async def connect() -> client.ApiClient:
    """A client with the pod's service account, or outside a cluster with the current kubeconfig."""
    loader: Any = config
    try:
        loader.load_incluster_config()
    except config.ConfigException:
        await loader.load_kube_config()
    configuration = client.Configuration.get_default_copy()
    # as kopf's own session: the environment's proxies are not for the API server, and are looked up for every call
    configuration.client_session_kwargs = {"trust_env": False}
    return client.ApiClient(configuration)


class Api:
    """Every method raises ApiException, with the API server's status and words, or aiohttp's ClientError."""

    def __init__(self, connection: client.ApiClient, namespaces: tuple[str, ...] = ()) -> None:
        self._connection = connection
        self._namespaces = namespaces or ("",)

    async def read(self, kind: Kind, namespace: str, name: str) -> Object:
        return await self._call("GET", kind.path(namespace, name))

    async def list_pages(
        self, kind: Kind, namespace: str = "", labels: Object | None = None, fields: str = ""
    ) -> AsyncIterator[Page]:
        """Objects of ours, a page at a time, so that thousands take little memory.

        Args:
            namespace: empty for all that the operator looks after.
            labels: that they have beside those of the kind.

        Raises:
            NotServedError: when the kind is not installed.
        """
        selector = ",".join(f"{name}={value}" for name, value in {**kind.labels, **(labels or {})}.items())
        for place in (namespace,) if namespace else self._namespaces:
            query = {"limit": PAGE_SIZE, "labelSelector": selector, "fieldSelector": fields, "continue": ""}
            while True:
                try:
                    found = await self._call("GET", kind.path(place), query)
                except ApiException as error:
                    if error.status == NOT_FOUND:
                        raise NotServedError(kind.plural) from None
                    raise
                yield found["items"], int(found["metadata"]["resourceVersion"])
                query["continue"] = found["metadata"].get("continue", "")
                if not query["continue"]:
                    break

    async def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        """Create an object; what came of it, with all that the API server added."""
        return await self._call("POST", kind.path(namespace), body=body)

    async def replace(self, kind: Kind, namespace: str, name: str, body: Object) -> None:
        await self._call("PUT", kind.path(namespace, name), body=body)

    async def patch_status(self, kind: Kind, namespace: str, name: str, changes: Object) -> Object:
        """Merge into the status; a resourceVersion among the changes makes it conditional."""
        return await self._call("PATCH", kind.path(namespace, name, "status"), body=changes)

    async def delete(
        self, kind: Kind, namespace: str, name: str, uid: str, propagation: str = "Background"
    ) -> None:
        """Delete this very object; that it is gone already, or another one is there, is as well."""
        options = {"propagationPolicy": propagation, "preconditions": {"uid": uid}}
        try:
            await self._call("DELETE", kind.path(namespace, name), body=options)
        except ApiException as error:
            if error.status not in (NOT_FOUND, CONFLICT):
                raise

    async def _call(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Object | None = None
    ) -> Object:
        headers = {"Accept": "application/json"}
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
        text = await response.read()
        if response.status not in (OK, CREATED, ACCEPTED):
            raise ApiException(status=response.status, reason=_message(text) or response.reason)
        found: Object = json.loads(text)
        return found


def _message(text: bytes) -> str:
    """What the API server, or something before it, says of an error."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return ""
