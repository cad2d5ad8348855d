"""What the API server holds of ours, as last seen: watches keep it fresh, and lists fill and mend it.

A watch that was cut off may have missed a deletion, and kopf does not look for those: a list finds them.
Lists and watches overtake one another, so the newer resourceVersion wins, whichever brings it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from typing import Generic, TypeVar

from kubernetes.aio.client.exceptions import ApiException

from . import names
from .api import JOBS, NOT_FOUND, PODS, RESOURCES, Api, Object, Page
from .observe import Resource, StepPod, observe_job, observe_step_pod
from .snapshot import Child

log = logging.getLogger(__name__)

Name = tuple[str, str]
"""Namespace and name."""
Item = TypeVar("Item")


class Shelf(Generic[Item]):
    """The objects of one kind, in what form we need them, by whose they are."""

    def __init__(self, observe: Callable[[Object], Item], owner: Callable[[Object], Hashable]) -> None:
        self._observe = observe
        self._owner = owner
        self._items: dict[Hashable, dict[Name, Item]] = {}
        self._known: dict[Name, tuple[int, Hashable]] = {}
        """Of each object the version that was seen, and its owner."""
        self._gone: dict[Name, int] = {}
        """As of when those do not exist that were deleted since all were listed."""
        self._listed = 0
        """When all were listed: what is older and not known was gone by then, however late its events come."""

    def __iter__(self) -> Iterator[Item]:
        for items in list(self._items.values()):
            yield from list(items.values())

    def of(self, owner: Hashable) -> list[Item]:
        return list(self._items.get(owner, {}).values())

    def put(self, body: Object) -> bool:
        """Take in an object; False when it says nothing that is not known already."""
        return self._take(body, self._listed)

    def _take(self, body: Object, listed: int) -> bool:
        name, version = _identify(body)
        if version <= max(self._known.get(name, (listed,))[0], self._gone.get(name, 0)):
            return False
        before = self._remove(name)
        try:
            owner, item = self._owner(body), self._observe(body)
        except (KeyError, ValueError) as error:
            log.warning("%s/%s has a label of ours and is none of ours: %r", *name, error)
            return False
        self._items.setdefault(owner, {})[name] = item
        self._known[name] = version, owner
        return item != before

    def drop(self, body: Object) -> None:
        """An object was deleted."""
        name, version = _identify(body)
        self._gone[name] = version
        if self._known.get(name, (version + 1,))[0] <= version:
            self._remove(name)

    def lose(self, name: Name) -> None:
        """An object is gone, and no watch has said so yet."""
        if name in self._known:
            self._gone[name] = self._known[name][0]
            self._remove(name)

    async def mend(self, pages: AsyncIterator[Page], owner: Hashable = None) -> None:
        """Be as a list says, but for what is newer than it.

        Args:
            owner: whose objects were listed; None when all were.
        """
        listed: set[Name] = set()
        versions: set[int] = set()
        async for page, version in pages:
            versions.add(version)
            for body in page:
                listed.add(_identify(body)[0])
                self._take(body, 0 if owner is None else self._listed)
        oldest = min(versions, default=0)
        known = list(self._known) if owner is None else list(self._items.get(owner, ()))
        for name in known:
            if name not in listed and self._known[name][0] <= oldest:
                self._gone[name] = oldest
                self._remove(name)
        if owner is None:
            self._listed = oldest
            self._gone = {name: version for name, version in self._gone.items() if version > oldest}

    def _remove(self, name: Name) -> Item | None:
        if name not in self._known:
            return None
        _, owner = self._known.pop(name)
        item = self._items[owner].pop(name)
        if not self._items[owner]:
            del self._items[owner]
        return item


class Cache:
    """All that the operator knows of the world between two looks at it."""

    def __init__(self) -> None:
        self.resources: Shelf[Resource] = Shelf(Resource.of, lambda body: _identify(body)[0])
        """By namespace and name."""
        self.children: Shelf[Child] = Shelf(observe_job, _job_uid)
        """By the UID of the resource that they belong to, as are the pods."""
        self.pods: Shelf[StepPod] = Shelf(observe_step_pod, _job_uid)

    def resource(self, key: Name) -> Resource | None:
        return next(iter(self.resources.of(key)), None)

    def unsettled(self) -> Iterator[Resource]:
        """Those about which something may be to be done, whatever happens to them or does not.

        One that has ended is among them as long as a child of it runs: its end is written before that is stopped.
        """
        for resource in self.resources:
            active = any(child.active for child in self.children.of(resource.uid))
            if not resource.ended or resource.mortal or active:
                yield resource

    async def mend(self, api: Api) -> None:
        """Be as the API server says. Pods come last, so that one whose Job has just gone is not missed."""
        await self.resources.mend(api.list_pages(RESOURCES))
        await self.children.mend(api.list_pages(JOBS))
        await self.pods.mend(api.list_pages(PODS))

    async def mend_one(self, api: Api, resource: Resource, children: bool) -> Resource | None:
        """The same for one job; None when it is gone.

        It comes after its children: one that went because its owner did is never missed while that seems to be there.

        Args:
            children: its Jobs and pods too. Finding them takes the API server as long as there are others of ours.
        """
        if children:
            labels = {names.JOB_UID: resource.uid}
            await self.children.mend(api.list_pages(JOBS, resource.namespace, labels), resource.uid)
            await self.pods.mend(api.list_pages(PODS, resource.namespace, labels), resource.uid)
        try:
            body = await api.read(RESOURCES, resource.namespace, resource.name)
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise
            self.resources.lose((resource.namespace, resource.name))
            return None
        self.resources.put(body)
        return Resource.of(body)


def _identify(body: Object) -> tuple[Name, int]:
    metadata = body["metadata"]
    return (metadata["namespace"], metadata["name"]), int(metadata["resourceVersion"])


def _job_uid(body: Object) -> Hashable:
    uid: str = body["metadata"]["labels"][names.JOB_UID]
    return uid
