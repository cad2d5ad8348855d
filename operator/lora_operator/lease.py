"""Leader election by a Lease, after client-go's leaderelection (docs/adr/0005 says why it is not the library's).

Times are measured from when this process saw the Lease change, so the replicas' clocks may differ. Two leaders at the
same time would still create nothing twice (docs/explanation/staleness.md); the Lease only avoids duplicate requests.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import aiohttp
from kubernetes.aio.client.exceptions import ApiException

from .api import LEASES, NOT_FOUND, Api
from .workqueue import describe_error

log = logging.getLogger(__name__)

LEASE_SECONDS = 15
"""How long the others wait for a leader that does not renew the Lease."""
RENEW_SECONDS = 10.0
"""How long a leader that cannot renew the Lease may continue."""
RETRY_SECONDS = 2.0
"""Time between two requests for the Lease."""


@dataclass
class Lease:
    """A candidate for the Lease `namespace`/`name`, with an `identity` of its own."""

    api: Api
    namespace: str
    name: str
    identity: str
    pod: tuple[str, str] | None = None
    """Name and UID of this candidate's pod, which owns the Lease while it leads: Kubernetes deletes the Lease after the
    last leader's pod, also when the release is uninstalled. None outside a cluster."""
    _seen: tuple[Any, ...] = field(default=(), init=False)
    """The holder and renewTime that were read last."""
    _seen_at: float = field(default=0.0, init=False)
    """When they were first read, on the monotonic clock."""

    async def acquire(self) -> None:
        """Wait until this candidate holds the Lease."""
        while not await self._try():
            await asyncio.sleep(RETRY_SECONDS)
        log.info("%s holds the Lease %s/%s", self.identity, self.namespace, self.name)

    async def hold(self) -> None:
        """Renew the Lease; return when that has failed for `RENEW_SECONDS`."""
        renewed = monotonic()
        while monotonic() - renewed < RENEW_SECONDS:
            await asyncio.sleep(RETRY_SECONDS)
            requested_at = monotonic()  # before the request: the others may have seen the renewal since then
            if await self._try():
                renewed = requested_at
        log.error("%s has lost the Lease %s/%s", self.identity, self.namespace, self.name)

    async def release(self) -> None:
        """Give the Lease up, so that another candidate gets it at once. If that fails, it waits until the Lease expires."""
        await self._try(holder="", seconds=1)

    async def _try(self, holder: str | None = None, seconds: int = LEASE_SECONDS) -> bool:
        try:
            async with asyncio.timeout(RENEW_SECONDS / 2):
                return await self._take(self.identity if holder is None else holder, seconds)
        except (ApiException, aiohttp.ClientError, OSError) as error:
            log.warning("Lease %s/%s: %s", self.namespace, self.name, describe_error(error))
            return False

    async def _take(self, holder: str, seconds: int) -> bool:
        """Take, renew or give up the Lease; False while another candidate holds it."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: dict[str, Any] = {
            "holderIdentity": holder,
            "leaseDurationSeconds": seconds,
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": 0,
        }
        metadata: dict[str, Any] = {"name": self.name, "namespace": self.namespace}
        if self.pod is not None:
            name, uid = self.pod
            metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}]
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        try:
            current = await self.api.read(LEASES, self.namespace, self.name)
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise
            if not holder:
                return True
            await self.api.create(LEASES, self.namespace, body)
            return True
        held = current.get("spec") or {}
        before = held.get("holderIdentity") or ""
        seen = (before, held.get("renewTime"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, monotonic()
        is_holder = before == self.identity
        if (
            before
            and not is_holder
            and monotonic() < self._seen_at + held.get("leaseDurationSeconds", LEASE_SECONDS)
        ):
            return False
        spec["leaseTransitions"] = held.get("leaseTransitions", 0) + (bool(held) and not is_holder)
        if is_holder:
            spec["acquireTime"] = held.get("acquireTime", now)
        # labels and annotations that others have set stay
        metadata |= {part: current["metadata"].get(part, {}) for part in ("labels", "annotations")}
        metadata["resourceVersion"] = current["metadata"]["resourceVersion"]
        await self.api.replace(LEASES, self.namespace, self.name, body)
        return True
