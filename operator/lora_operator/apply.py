"""I/O out: a `Decision` becomes API calls. Every call may be made twice: the second changes nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import aiohttp
from kubernetes.aio.client.exceptions import ApiException

from lora_api import API_VERSION, GROUP, KIND
from lora_api.reasons import Reason
from lora_api.status import JobStatus

from . import metrics, names
from .api import BAD_REQUEST, CONFLICT, EVENTS, FORBIDDEN, INVALID, JOBS, RESOURCES, Api, Object
from .decide import Announcement, Decision, RemoveJob, StartAnnotation, StartTraining, StopStep
from .manifests import CLUSTER, build_job, build_step
from .observe import why_refused
from .settings import Images
from .snapshot import Refusal, Snapshot

log = logging.getLogger(__name__)

REFUSED = (BAD_REQUEST, FORBIDDEN, INVALID)
"""By the API server's own rules, a quota or a policy; only what does not fit the rules never will."""


class RefusedError(Exception):
    """A child cannot be created."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass
class Cluster:
    """A decision's way into the cluster."""

    api: Api
    images: Images
    made: Callable[[Object], object] = lambda body: None
    """Told of every Job as it is once it was made; the watch brings it later."""

    async def apply_decision(self, snapshot: Snapshot, decision: Decision, version: str) -> Object | None:
        """Carry out a decision: children first, then the status once, then what is told of it.

        An end is written before what still runs is stopped: why it ended may be seen in nothing else.

        Args:
            version: the resourceVersion that was decided upon; the status write is refused when the
                resource has moved on since.

        Returns:
            The resource as it is with its new status; None when that was not written.

        Raises:
            RefusedError: when a child is not let in, or its name belongs to somebody else.
            ApiException: from the API server; nothing is lost, decide again.
        """
        if decision.status.phase.terminal:
            written = await self._tell(snapshot, decision, version)
            await self._act(snapshot, decision)
        else:
            await self._act(snapshot, decision)
            written = await self._tell(snapshot, decision, version)
        return written

    async def _act(self, snapshot: Snapshot, decision: Decision) -> None:
        for action in decision.actions:
            match action:
                case StartAnnotation() | StartTraining():
                    config = build_step(snapshot, action, CLUSTER)
                    await self._create_job(snapshot, build_job(snapshot, config, self.images))
                case StopStep(job_name, uid):
                    await self._delete_job(snapshot.namespace, job_name, uid)
                case RemoveJob():
                    await self._remove(snapshot)

    async def _tell(self, snapshot: Snapshot, decision: Decision, version: str) -> Object | None:
        written = await self._write_status(snapshot, decision.status, version)
        if written:
            metrics.count(snapshot, decision.status)
            for announcement in decision.announcements:
                await self._announce(snapshot, announcement)
        return written

    async def _create_job(self, snapshot: Snapshot, body: dict[str, Any]) -> None:
        name = body["metadata"]["name"]
        metrics.API_WRITES.labels("job", "create").inc()
        try:
            self.made(await self.api.create(JOBS, snapshot.namespace, body))
        except ApiException as error:
            if error.status in REFUSED:
                refusal = Refusal(why_refused(error.reason), error.reason, final=error.status == INVALID)
                raise RefusedError(refusal) from None
            if error.status != CONFLICT:
                raise
            existing = await self.api.read(JOBS, snapshot.namespace, name)
            owners = existing["metadata"].get("ownerReferences", [])
            if not any(owner["uid"] == snapshot.uid for owner in owners):
                message = (
                    f"Job {name!r} exists and belongs to somebody else: remove it, or create this object again "
                    "under another name"
                )
                raise RefusedError(Refusal(Reason.NAME_CONFLICT, message, final=True)) from None
            self.made(existing)

    async def _delete_job(self, namespace: str, name: str, uid: str) -> None:
        """In the foreground, so that the Job is seen until its pods are gone."""
        metrics.API_WRITES.labels("job", "delete").inc()
        await self.api.delete(JOBS, namespace, name, uid, "Foreground")

    async def _remove(self, snapshot: Snapshot) -> None:
        metrics.API_WRITES.labels("loratrainingjob", "delete").inc()
        await self.api.delete(RESOURCES, snapshot.namespace, snapshot.name, snapshot.uid)

    async def _write_status(self, snapshot: Snapshot, status: JobStatus, version: str) -> Object | None:
        """Write what has changed; None when nothing has."""
        # an empty status says nothing, not even its defaults; one that cannot be read cannot be merged with
        before = {} if snapshot.status_error or snapshot.status == JobStatus() else snapshot.status.to_wire()
        changes = merge_patch(before, status.to_wire())
        if not changes:
            return None
        metrics.API_WRITES.labels("loratrainingjob", "patch").inc()
        metadata = {"resourceVersion": version, "uid": snapshot.uid}
        body = {"metadata": metadata, "status": changes}
        return await self.api.patch_status(RESOURCES, snapshot.namespace, snapshot.name, body)

    async def _announce(self, snapshot: Snapshot, announcement: Announcement) -> None:
        """Post an Event. One that is lost is no harm: the condition says the same."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
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
            await self.api.create(EVENTS, snapshot.namespace, body)
        except (ApiException, aiohttp.ClientError) as error:
            log.warning("no Event for %s/%s: %r", snapshot.namespace, snapshot.name, error)


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
