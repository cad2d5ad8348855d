"""Carry out decisions by calls to the API server. Repeating an action or a status write changes nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import aiohttp
from kubernetes.aio.client.exceptions import ApiException

from lora_api import API_VERSION, GROUP, KIND
from lora_api.reasons import Reason
from lora_api.status import ConditionType, JobStatus

from . import metrics, names
from .api import (
    BAD_REQUEST,
    BATCH_JOBS,
    CONFLICT,
    EVENTS,
    FORBIDDEN,
    INVALID,
    NOT_FOUND,
    RESOURCES,
    Api,
    Object,
)
from .decide import (
    Announcement,
    Decision,
    DeleteChildJob,
    DeleteResource,
    RestoreChildJob,
    SendWebhook,
    StartAnnotation,
    StartTraining,
)
from .manifests import CLUSTER, build_job, build_metadata, build_stage_config, runs_the_same
from .observe import classify_refusal
from .ownership import NotOurChildError, find_controller
from .settings import Images
from .snapshot import Refusal, Snapshot, stage_status, update_stage
from .webhooks import Delivery, build_delivery
from .workqueue import describe_error

log = logging.getLogger(__name__)

REFUSAL_STATUSES = (BAD_REQUEST, FORBIDDEN, INVALID)
"""HTTP statuses of a request that validation, a quota or an admission policy refused. Only INVALID is final: the others
may pass later."""


class RefusedError(Exception):
    """A child Job was not admitted."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass
class Cluster:
    """Carries out decisions in the cluster."""

    api: Api
    images: Images
    on_created: Callable[[Object], object] = lambda body: None
    """Called with every child Job that was created, because the watch reports it only later."""
    on_webhook: Callable[[Delivery], object] = lambda delivery: None
    """Called with every message to a profile's webhook. It must not wait for the delivery."""

    async def apply_decision(self, snapshot: Snapshot, decision: Decision, version: str) -> Object | None:
        """Carry out a decision: stages are started first, then the status is written once, then come the Events and the
        other actions.

        Child Jobs are deleted last, because their pods may be the only evidence of what the status says: how a stage
        ended, and that it was charged. A deletion that fails is decided again.

        Args:
            snapshot: what the decision was made from.
            decision: the decision.
            version: the resource's resourceVersion. The status write is refused when it has changed.

        Returns:
            The resource with its new status; None when the status did not change.

        Raises:
            RefusedError: when a child Job is not admitted, or another object has its name.
            ApiException: from the API server. The caller can observe and decide again.
        """
        status = await self._start_stages(snapshot, decision)
        written = await self._publish_status(snapshot, replace(decision, status=status), version)
        for action in decision.actions:
            match action:
                case DeleteChildJob(job_name, uid):
                    await self._delete_job(snapshot.namespace, job_name, uid)
                case RestoreChildJob(stage, attempt, uid):
                    await self._restore_job(snapshot, build_metadata(snapshot, stage, attempt), uid)
                case DeleteResource():
                    await self._delete_resource(snapshot)
                case SendWebhook(webhook, deadline):
                    self.on_webhook(build_delivery(snapshot, webhook, deadline))
        return written

    async def _start_stages(self, snapshot: Snapshot, decision: Decision) -> JobStatus:
        """Create the child Jobs that a decision starts.

        Returns:
            The new status with their UIDs.
        """
        status = decision.status
        for action in decision.actions:
            if isinstance(action, StartAnnotation | StartTraining):
                # the child Job's backoffLimit follows from the failures in the new status
                draft = replace(snapshot, status=status)
                config = build_stage_config(draft, action, CLUSTER)
                body = build_job(draft, config, self.images)
                known = stage_status(snapshot.status, config.stage)
                uid = await self._create_job(snapshot, body, known.job_uid if known else "")
                status = update_stage(status, config.stage, job_uid=uid)
        return status

    async def _publish_status(self, snapshot: Snapshot, decision: Decision, version: str) -> Object | None:
        """Write the status if it has changed, then count, log and announce the change."""
        written = await self._write_status(snapshot, decision.status, version)
        if written:
            metrics.count(snapshot, decision.status)
            log_transition(snapshot, decision.status)
            for announcement in decision.announcements:
                await self._create_event(snapshot, announcement)
        return written

    async def _create_job(self, snapshot: Snapshot, body: dict[str, Any], recorded: str) -> str:
        """Create a child Job, or accept the one that exists; return its UID.

        Args:
            snapshot: the job.
            body: the child Job.
            recorded: the UID of the stage's child Job in the status; empty if there is none.
        """
        name, namespace = body["metadata"]["name"], snapshot.namespace
        created = None
        # one that exists already was created before, but its status was not written
        if not any(child.name == name for child in snapshot.children):
            created = await self._try_to_create(namespace, body)
        if created is None:
            existing = await self.api.read(BATCH_JOBS, namespace, name)
            created = await self._adopt_job(snapshot, existing, body, recorded)
        self.on_created(created)
        return str(created["metadata"]["uid"])

    async def _try_to_create(self, namespace: str, body: dict[str, Any]) -> Object | None:
        """Create a child Job; None if another object has its name.

        Raises:
            RefusedError: when it is not admitted.
        """
        metrics.API_WRITES.labels("job", "create").inc()
        try:
            return await self.api.create(BATCH_JOBS, namespace, body)
        except ApiException as error:
            if error.status in REFUSAL_STATUSES:
                refusal = Refusal(classify_refusal(error.reason), error.reason, final=error.status == INVALID)
                raise RefusedError(refusal) from None
            if error.status != CONFLICT:
                raise
            return None

    async def _adopt_job(
        self, snapshot: Snapshot, existing: Object, body: dict[str, Any], recorded: str
    ) -> Object:
        """Accept the existing child Job of the same name in place of a new one.

        It is one that the operator created before its status could be written, or one that a tenant created. The
        latter is deleted, unless it runs the same as the operator's.

        Raises:
            RefusedError: when it is not the recorded one and the resource is not its controller, when it has another
                controller, or when it runs anything else than `body`.
        """
        metadata = existing["metadata"]
        is_known = _is_controlled_by(existing, snapshot) or metadata["uid"] == recorded
        if not is_known or _has_other_controller(existing, snapshot):
            message = (
                f"Job {metadata['name']!r} exists and was not created by the operator for this job: delete it, or "
                "create this resource again under another name"
            )
            raise RefusedError(Refusal(Reason.NAME_CONFLICT, message, final=True))
        if metadata["uid"] != recorded and not runs_the_same(existing, body):
            if "deletionTimestamp" not in metadata:
                await self._delete_job(snapshot.namespace, metadata["name"], metadata["uid"])
            message = f"Job {metadata['name']!r} was not created by the operator: waiting until it is deleted"
            raise RefusedError(Refusal(Reason.NAME_CONFLICT, message, final=False))
        return await self._restore(snapshot, existing, body["metadata"])

    async def _restore_job(self, snapshot: Snapshot, metadata: Mapping[str, Any], uid: str) -> None:
        """Restore the labels and the owner of a child Job, if one with this UID exists and has no other controller.

        The watch then reports it, and the resource is reconciled again.
        """
        try:
            existing = await self.api.read(BATCH_JOBS, snapshot.namespace, metadata["name"])
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise
            return
        if existing["metadata"]["uid"] == uid and not _has_other_controller(existing, snapshot):
            await self._restore(snapshot, existing, metadata)

    async def _restore(self, snapshot: Snapshot, existing: Object, expected: Mapping[str, Any]) -> Object:
        """Restore the labels and the owner of a child Job, unless it has them; return the child Job."""
        metadata, labels = existing["metadata"], expected["labels"]
        is_ours = _is_controlled_by(existing, snapshot)
        if is_ours and labels.items() <= (metadata.get("labels") or {}).items():
            return existing
        # without its labels no watch reports the child Job, and without its owner it would outlive the resource
        log.warning("restoring the labels and the owner of Job %s/%s", snapshot.namespace, metadata["name"])
        metrics.API_WRITES.labels("job", "patch").inc()
        changes: dict[str, Any] = {"metadata": {"uid": metadata["uid"], "labels": labels}}
        if not is_ours:
            others = [each for each in metadata.get("ownerReferences") or () if each["uid"] != snapshot.uid]
            changes["metadata"]["ownerReferences"] = [*others, *expected["ownerReferences"]]
        return await self.api.patch(BATCH_JOBS, snapshot.namespace, metadata["name"], changes)

    async def _delete_job(self, namespace: str, name: str, uid: str) -> None:
        """Delete in the foreground, so that the child Job is there until its pods are gone."""
        metrics.API_WRITES.labels("job", "delete").inc()
        await self.api.delete(BATCH_JOBS, namespace, name, uid, "Foreground")

    async def _delete_resource(self, snapshot: Snapshot) -> None:
        metrics.API_WRITES.labels("loratrainingjob", "delete").inc()
        await self.api.delete(RESOURCES, snapshot.namespace, snapshot.name, snapshot.uid)

    async def _write_status(self, snapshot: Snapshot, status: JobStatus, version: str) -> Object | None:
        """Write the fields that have changed; None when none has."""
        # The whole status is written if there is none yet, because then even the defaults are not stored, and if the
        # stored one is invalid. The stored fields that the new status lacks are then removed: they may be the invalid ones.
        before = {} if snapshot.status == JobStatus() else snapshot.status.to_wire()
        if snapshot.status_error:
            before = dict.fromkeys(field.alias or name for name, field in JobStatus.model_fields.items())
        changes = merge_patch(before, status.to_wire())
        if not changes:
            return None
        metrics.API_WRITES.labels("loratrainingjob", "patch").inc()
        metadata = {"resourceVersion": version, "uid": snapshot.uid}
        body = {"metadata": metadata, "status": changes}
        return await self.api.patch_status(RESOURCES, snapshot.namespace, snapshot.name, body)

    async def _create_event(self, snapshot: Snapshot, announcement: Announcement) -> None:
        """Create an Event. An error is only logged: the condition has the same message."""
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
            log.warning("no Event for %s/%s: %s", snapshot.namespace, snapshot.name, describe_error(error))


def _is_controlled_by(body: Object, snapshot: Snapshot) -> bool:
    """Whether the resource is an object's controller. Labels are not compared, because they may have been removed."""
    try:
        return find_controller(body["metadata"], GROUP, KIND)["uid"] == snapshot.uid
    except NotOurChildError:
        return False


def _has_other_controller(body: Object, snapshot: Snapshot) -> bool:
    """Whether an object has a controller, and this is not the resource."""
    owners = body["metadata"].get("ownerReferences") or ()
    return any(owner.get("controller") is True for owner in owners) and not _is_controlled_by(body, snapshot)


def log_transition(snapshot: Snapshot, status: JobStatus) -> None:
    """Log a change of phase or reason, once its status is written."""
    before, after = (s.condition(ConditionType.SUCCEEDED) for s in (snapshot.status, status))
    old = (snapshot.status.phase, before.reason) if before else None
    new = (status.phase, after.reason if after else "")
    if old == new or after is None:
        return
    log.info(
        "%s/%s: %s (%s): %s",
        snapshot.namespace,
        snapshot.name,
        status.phase,
        after.reason,
        after.message,
        extra={
            "job": {
                "namespace": snapshot.namespace,
                "name": snapshot.name,
                "uid": snapshot.uid,
                "from": str(snapshot.status.phase) if old else "",
                "phase": str(status.phase),
                "reason": str(after.reason),
            }
        },
    )


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON merge patch (RFC 7396) that turns one object into the other; empty when they are equal."""
    patch: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            if inner := merge_patch(old, value):
                patch[name] = inner
        elif old != value:
            patch[name] = value
    return patch
