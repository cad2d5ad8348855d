"""What Kubernetes complains of in Events: why a pod is not let in, or cannot start."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from time import monotonic

from .api import EVENTS, Api, Object
from .observe import COMPLAINTS

LEAST_AGE_SECONDS = 2.0
MOST_SHARE = 0.1
"""Of the time that is spent listing: a namespace may hold tens of thousands of Events."""


@dataclass
class _Namespace:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    fresh_until: float = 0.0
    found: dict[str, list[Object]] = field(default_factory=dict)
    """By the UID of what they are about."""


class Complaints:
    """One list of a namespace's warnings serves all jobs that wait in it.

    An API server has no index of Events: finding those about one pod takes it as long as finding all.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._namespaces: defaultdict[str, _Namespace] = defaultdict(_Namespace)

    async def about(self, namespace: str, uid: str) -> list[Object]:
        """The Events about one Job or pod, as they were a moment ago.

        Raises:
            ApiException: from the API server.
        """
        known = self._namespaces[namespace]
        async with known.lock:
            began = monotonic()
            if began >= known.fresh_until:
                known.found = await self._list(namespace)
                now = monotonic()
                known.fresh_until = now + max(LEAST_AGE_SECONDS, (now - began) / MOST_SHARE)
        return known.found.get(uid, [])

    async def _list(self, namespace: str) -> dict[str, list[Object]]:
        found: dict[str, list[Object]] = {}
        async for page, _ in self._api.list_pages(EVENTS, namespace, fields="type=Warning"):
            for event in page:
                if event.get("reason") in COMPLAINTS:
                    found.setdefault((event.get("regarding") or {}).get("uid", ""), []).append(event)
        return found
