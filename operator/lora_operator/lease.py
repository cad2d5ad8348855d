"""Which of several operators works: the one that holds a Lease. After client-go's leaderelection.

Times are measured from when this process saw the Lease change, so clocks that differ do no harm. Should two
operators work at once all the same, they do nothing twice: the Lease keeps the second from working for nothing.
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

log = logging.getLogger(__name__)

LEASE_SECONDS = 15
"""How long the others wait for a holder that has gone silent."""
RENEW_SECONDS = 10.0
"""How long a holder that cannot renew may go on."""
RETRY_SECONDS = 2.0


@dataclass
class Lease:
    """A candidate for one Lease, `namespace` and `name`, under an `identity` of its own."""

    api: Api
    namespace: str
    name: str
    identity: str
    _seen: tuple[Any, ...] = field(default=(), init=False)
    _seen_at: float = field(default=0.0, init=False)

    async def acquire(self) -> None:
        """Wait for the Lease."""
        while not await self._try():
            await asyncio.sleep(RETRY_SECONDS)
        log.info("%s holds the Lease %s/%s", self.identity, self.namespace, self.name)

    async def hold(self) -> None:
        """Renew the Lease; returns when that has not been possible for `RENEW_SECONDS`."""
        renewed = monotonic()
        while monotonic() - renewed < RENEW_SECONDS:
            await asyncio.sleep(RETRY_SECONDS)
            asked = monotonic()
            if await self._try():
                renewed = asked
        log.error("%s has lost the Lease %s/%s", self.identity, self.namespace, self.name)

    async def release(self) -> None:
        """Let another one have it at once; where that fails it waits until the Lease runs out."""
        await self._try(holder="", seconds=1)

    async def _try(self, holder: str | None = None, seconds: int = LEASE_SECONDS) -> bool:
        try:
            async with asyncio.timeout(RENEW_SECONDS / 2):
                return await self._take(self.identity if holder is None else holder, seconds)
        except (ApiException, aiohttp.ClientError, OSError) as error:
            log.warning("the Lease %s/%s: %r", self.namespace, self.name, error)
            return False

    async def _take(self, holder: str, seconds: int) -> bool:
        """Take, renew or give up the Lease; False while another one holds it."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: dict[str, Any] = {
            "holderIdentity": holder,
            "leaseDurationSeconds": seconds,
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": 0,
        }
        metadata = {"name": self.name, "namespace": self.namespace}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        try:
            found = await self.api.read(LEASES, self.namespace, self.name)
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise
            await self.api.create(LEASES, self.namespace, body)
            return True
        held = found["spec"]
        before = held.get("holderIdentity", "")
        seen = (before, held.get("renewTime"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, monotonic()
        ours = before == self.identity
        if (
            before
            and not ours
            and monotonic() < self._seen_at + held.get("leaseDurationSeconds", LEASE_SECONDS)
        ):
            return False
        spec["leaseTransitions"] = held.get("leaseTransitions", 0) + (not ours)
        if ours:
            spec["acquireTime"] = held.get("acquireTime", now)
        metadata["resourceVersion"] = found["metadata"]["resourceVersion"]
        await self.api.replace(LEASES, self.namespace, self.name, body)
        return True
