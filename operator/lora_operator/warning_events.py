"""Warning Events: why a pod is not admitted or cannot start."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from time import monotonic

from .api import EVENTS, Api, Object
from .observe import EXPLAINING_EVENTS, MOUNT_FAILURES, event_time

MIN_AGE_SECONDS = 2.0
NEW_AGE_SECONDS = 10.0
"""Largest age of a list, in seconds, that is used for an object without an Event in it."""
MAX_AGE_SECONDS = 60.0
"""Largest age of a list, in seconds, that is used for an object with an Event in it, unless listing is slow."""
MAX_SHARE = 0.1
"""Share of the time that may be spent listing, because a namespace can hold tens of thousands of Events."""


FIELDS = ("reason", "note", "eventTime", "deprecatedLastTimestamp", "regarding")
MAX_NOTE = 1024
"""Characters of a message that are kept, as many as Kubernetes allows."""
MAX_UID = 64
MAX_MOUNTS = 4
"""Events that are kept about the volumes of a pod. The kubelet writes one for each volume that it cannot mount."""
MAX_EVENTS = 5000
"""Events of a namespace that are kept."""


@dataclass
class _Namespace:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    listed_at: float = 0.0
    """End of the last list, on the monotonic clock."""
    max_age: float = 0.0
    """Age in seconds from which the list is read again."""
    events: dict[str, list[Object]] = field(default_factory=dict)
    """The Events about each object (see `_newest`), by its UID."""


class WarningEvents:
    """Reads the Events of a namespace with one list for all jobs that wait in it.

    The API server has no index of Events: listing those about one pod costs as much as listing all. While the
    same objects have Events, lists become rarer, down to one a minute.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._namespaces: defaultdict[str, _Namespace] = defaultdict(_Namespace)

    async def about(self, namespace: str, uid: str) -> list[Object]:
        """Return the Events about a child Job or a pod. They may be up to `MAX_AGE_SECONDS` old.

        Raises:
            ApiException: from the API server.
        """
        cached = self._namespaces[namespace]
        async with cached.lock:
            max_age = cached.max_age if uid in cached.events else min(cached.max_age, NEW_AGE_SECONDS)
            started_at = monotonic()
            if started_at - cached.listed_at >= max_age:
                events = await self._list(namespace)
                cached.listed_at = monotonic()
                min_age = (cached.listed_at - started_at) / MAX_SHARE
                # lists become rarer while there are Events about the same objects
                same = events.keys() == cached.events.keys()
                age = min(2 * cached.max_age, MAX_AGE_SECONDS) if same else 0.0
                cached.max_age = max(age, MIN_AGE_SECONDS, min_age)
                cached.events = events
        return cached.events.get(uid, [])

    async def _list(self, namespace: str) -> dict[str, list[Object]]:
        """List the Events of a namespace that explain why a stage does not start, by the UID that they are about."""
        kept: dict[str, list[Object]] = {}
        count = 0
        async for page, _ in self._api.list_pages(EVENTS, namespace, fields="type=Warning"):
            for event in page:
                if event.get("reason") not in EXPLAINING_EVENTS:
                    continue
                uid = str((event.get("regarding") or {}).get("uid", ""))[:MAX_UID]
                known = kept.get(uid, [])
                events = _newest([*known, event])
                if count >= MAX_EVENTS:
                    events = events[: len(known)]  # a newer one may still replace an older one
                if events:
                    kept[uid] = [_reduced(each) if each is event else each for each in events]
                    count += len(events) - len(known)
        return kept


def _newest(events: list[Object]) -> list[Object]:
    """Return the newest of the Events about an object, and the other new ones about volumes that cannot be mounted."""
    newest, *others = sorted(events, key=event_time, reverse=True)
    mounts = [event for event in others if event["reason"] in MOUNT_FAILURES]
    return [newest, *mounts[: MAX_MOUNTS - 1]]


def _reduced(event: Object) -> Object:
    """Return the parts of an Event that are read. A tenant can write Events of a megabyte."""
    kept = {name: value for name, value in event.items() if name in FIELDS}
    cut = {name: value[:MAX_NOTE] for name, value in kept.items() if isinstance(value, str)}
    regarding = {"uid": str((event.get("regarding") or {}).get("uid", ""))[:MAX_UID]}
    return kept | cut | {"regarding": regarding}
