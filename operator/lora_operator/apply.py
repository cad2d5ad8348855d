"""I/O out: a `Decision` becomes API calls. Every call may be made twice: the second changes nothing."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from lora_api import API_VERSION, GROUP, KIND, PLURAL, VERSION
from lora_api.status import JobStatus

from . import metrics, names
from .cache import Kind, Name, Object, Page
from .decide import Announcement, Decision, RemoveJob, StartAnnotation, StartTraining, StopStep
from .manifests import CLUSTER, build_job, build_step
from .settings import Images
from .snapshot import Snapshot

log = logging.getLogger(__name__)

OK, NOT_FOUND, CONFLICT = 200, 404, 409
PAGE_SIZE = 500


class NameConflictError(Exception):
    """A child's name is taken by an object that is not ours."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


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
    return client.ApiClient()


@dataclass
class Cluster:
    """The API calls of the operator: all but kopf's watches are here, and the chart's Role allows no others."""

    api: client.ApiClient
    images: Images
    namespaces: tuple[str, ...] = ()
    """Those to look after; none means all."""

    def __post_init__(self) -> None:
        # the generated client takes plain data where its annotations ask for model classes
        self._batch: Any = client.BatchV1Api(self.api)
        self._core: Any = client.CoreV1Api(self.api)
        self._events: Any = client.EventsV1Api(self.api)
        self._custom: Any = client.CustomObjectsApi(self.api)

    async def apply_decision(self, snapshot: Snapshot, decision: Decision, version: str) -> None:
        """Carry out a decision: children first, then the status once, then what is told of it.

        Args:
            version: the resourceVersion that was decided upon; the status write is refused when the
                resource has moved on since.

        Raises:
            NameConflictError: when a child's name belongs to somebody else.
            ApiException: from the API server; nothing is lost, decide again.
        """
        for action in decision.actions:
            match action:
                case StartAnnotation() | StartTraining():
                    config = build_step(snapshot, action, CLUSTER)
                    await self._create_job(snapshot, build_job(snapshot, config, self.images))
                case StopStep(job_name, uid):
                    await self._delete_job(snapshot.namespace, job_name, uid)
                case RemoveJob():
                    await self._remove(snapshot)
                    return
        written = await self._write_status(snapshot, decision.status, version)
        if written:
            metrics.count(snapshot, decision.status)
            for announcement in decision.announcements:
                await self._announce(snapshot, announcement)

    async def _create_job(self, snapshot: Snapshot, body: dict[str, Any]) -> None:
        name = body["metadata"]["name"]
        metrics.API_WRITES.labels("job", "create").inc()
        try:
            await self._batch.create_namespaced_job(snapshot.namespace, body)
        except ApiException as error:
            if error.status != CONFLICT:
                raise
            existing = await self._batch.read_namespaced_job(name, snapshot.namespace)
            owners = existing.metadata.owner_references or []
            if not any(owner.uid == snapshot.uid for owner in owners):
                raise NameConflictError(name) from None

    async def _delete_job(self, namespace: str, name: str, uid: str) -> None:
        """In the foreground, so that the Job is seen until its pods are gone."""
        options = client.V1DeleteOptions(
            propagation_policy="Foreground", preconditions=client.V1Preconditions(uid=uid)
        )
        metrics.API_WRITES.labels("job", "delete").inc()
        try:
            await self._batch.delete_namespaced_job(name, namespace, body=options)
        except ApiException as error:
            if error.status not in (NOT_FOUND, CONFLICT):
                raise

    async def _remove(self, snapshot: Snapshot) -> None:
        options = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=snapshot.uid))
        metrics.API_WRITES.labels("loratrainingjob", "delete").inc()
        try:
            await self._custom.delete_namespaced_custom_object(
                GROUP, VERSION, snapshot.namespace, PLURAL, snapshot.name, body=options
            )
        except ApiException as error:
            if error.status not in (NOT_FOUND, CONFLICT):
                raise

    async def _write_status(self, snapshot: Snapshot, status: JobStatus, version: str) -> bool:
        """Write what has changed; False when nothing has."""
        changes = merge_patch(snapshot.status.to_wire(), status.to_wire())
        if snapshot.status_error:  # what stands there cannot be merged with
            changes = status.to_wire()
        if not changes:
            return False
        metrics.API_WRITES.labels("loratrainingjob", "patch").inc()
        await self._custom.patch_namespaced_custom_object_status(
            GROUP,
            VERSION,
            snapshot.namespace,
            PLURAL,
            snapshot.name,
            {"metadata": {"resourceVersion": version, "uid": snapshot.uid}, "status": changes},
            _content_type="application/merge-patch+json",
        )
        return True

    async def read(self, key: Name) -> Object | None:
        """A job as it is at this moment; None when it is gone."""
        namespace, name = key
        try:
            found: Object = await self._custom.get_namespaced_custom_object(
                GROUP, VERSION, namespace, PLURAL, name
            )
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise
            return None
        return found

    async def list_pages(self, kind: Kind) -> AsyncIterator[Page]:
        """All objects of a kind, as plain data and a page at a time, so that thousands take little memory."""
        root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
        selector = ",".join(f"{name}={value}" for name, value in kind.labels.items())
        namespaces = [kind.namespace] if kind.namespace else self.namespaces
        for place in [f"/namespaces/{name}" for name in namespaces] or [""]:
            query = {"limit": PAGE_SIZE, "labelSelector": selector, "continue": ""}
            while True:
                request = await self.api.param_serialize(
                    "GET",
                    f"{root}{place}/{kind.plural}",
                    query_params=list(query.items()),
                    header_params={"Accept": "application/json"},
                    auth_settings=["BearerToken"],
                )
                response: Any = await self.api.call_api(*request)
                if response.status == NOT_FOUND:
                    raise NotServedError(kind.plural)
                found = json.loads(await response.read())
                if response.status != OK:
                    raise ApiException(status=response.status, reason=found.get("message"))
                yield found["items"], int(found["metadata"]["resourceVersion"])
                query["continue"] = found["metadata"].get("continue", "")
                if not query["continue"]:
                    break

    async def events_of(self, namespace: str, uid: str) -> list[Object]:
        """The Events about one Job or pod."""
        found = await self._core.list_namespaced_event(namespace, field_selector=f"involvedObject.uid={uid}")
        serialize: Any = self.api.sanitize_for_serialization
        return [serialize(event) for event in found.items]

    async def _announce(self, snapshot: Snapshot, announcement: Announcement) -> None:
        """Post an Event. One that is lost is no harm: the condition says the same."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        body = {
            "metadata": {
                "name": f"{snapshot.name[:200]}.{uuid4().hex[:16]}",
                "namespace": snapshot.namespace,
            },
            "eventTime": now,
            "reportingController": f"{GROUP}/operator",
            "reportingInstance": os.environ.get("HOSTNAME", names.OPERATOR)[:128],
            "action": "Reconcile",
            "type": "Warning" if announcement.warning else "Normal",
            "reason": str(announcement.reason),
            "note": announcement.message[:1000],
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": snapshot.name,
                "namespace": snapshot.namespace,
                "uid": snapshot.uid,
            },
        }
        metrics.API_WRITES.labels("event", "create").inc()
        try:
            await self._events.create_namespaced_event(snapshot.namespace, body)
        except ApiException as error:
            log.warning("no Event for %s/%s: %s", snapshot.namespace, snapshot.name, error.reason)


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7396) that leads from one object to the other; empty when they are equal."""
    patch: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            if inner := merge_patch(old, value):
                patch[name] = inner
        elif old != value:
            patch[name] = value
    return patch
