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
from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

log = logging.getLogger(__name__)

LEASE_SECONDS = 15
"""How long the others wait for a holder that has gone silent."""
RENEW_SECONDS = 10.0
"""How long a holder that cannot renew may go on."""
RETRY_SECONDS = 2.0
NOT_FOUND = 404


@dataclass
class Lease:
    """A candidate for one Lease, `namespace` and `name`, under an `identity` of its own."""

    api: client.ApiClient
    namespace: str
    name: str
    identity: str
    _seen: tuple[Any, ...] = field(default=(), init=False)
    _seen_at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._leases: Any = client.CoordinationV1Api(self.api)

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
        body: dict[str, Any] = {"metadata": {"name": self.name, "namespace": self.namespace}, "spec": spec}
        try:
            found = await self._leases.read_namespaced_lease(self.name, self.namespace)
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise
            await self._leases.create_namespaced_lease(self.namespace, body)
            return True
        held = found.spec
        seen = (held.holder_identity, held.renew_time)
        if seen != self._seen:
            self._seen, self._seen_at = seen, monotonic()
        ours = held.holder_identity == self.identity
        runs_out = self._seen_at + (held.lease_duration_seconds or LEASE_SECONDS)
        if held.holder_identity and not ours and monotonic() < runs_out:
            return False
        spec["leaseTransitions"] = (held.lease_transitions or 0) + (not ours)
        if ours and held.acquire_time:
            spec["acquireTime"] = held.acquire_time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        body["metadata"]["resourceVersion"] = found.metadata.resource_version
        await self._leases.replace_namespaced_lease(self.name, self.namespace, body)
        return True
