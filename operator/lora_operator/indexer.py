"""The cache: the API server's objects as last seen. Watches keep it current, and lists fill and correct it.

An interrupted watch may have missed a deletion, which kopf does not report later. A list shows that the object is
missing. A watch event may arrive before or after a list that is newer, so the object with the higher resourceVersion
is kept, wherever it comes from.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from typing import Generic, TypeVar

from kubernetes.aio.client.exceptions import ApiException

from . import names
from .api import BATCH_JOBS, NOT_FOUND, PODS, RESOURCES, Api, Object, Page
from .observe import Resource, StagePod, observe_job, observe_stage_pod
from .ownership import job_lineage, pod_lineage
from .snapshot import Child

log = logging.getLogger(__name__)

Name = tuple[str, str]
"""Namespace and name."""
Item = TypeVar("Item")


class Indexer(Generic[Item]):
    """The objects of one kind, reduced to what decisions need and indexed by owner."""

    def __init__(self, observe: Callable[[Object], Item], owner: Callable[[Object], Hashable]) -> None:
        self._observe = observe
        self._owner = owner
        self._items: dict[Hashable, dict[Name, Item]] = {}
        self._known: dict[Name, tuple[int, Hashable]] = {}
        """Each object's resourceVersion and owner."""
        self._deleted: dict[Name, int] = {}
        """The versions at which objects were deleted, since the last complete list."""
        self._listed = 0
        """The version of the last complete list. An unknown object with an older version has been deleted."""

    def __iter__(self) -> Iterator[Item]:
        for items in list(self._items.values()):
            yield from list(items.values())

    def by_owner(self, owner: Hashable) -> list[Item]:
        return list(self._items.get(owner, {}).values())

    def holds(self, body: Object) -> bool:
        """Return whether an object of this namespace and name is known."""
        return _identify(body)[0] in self._known

    def update(self, body: Object) -> bool:
        """Add or replace an object; False when it is outdated or changes nothing."""
        return self._update(body, self._listed)

    def _update(self, body: Object, listed: int) -> bool:
        name, version = _identify(body)
        if version <= max(self._known.get(name, (listed,))[0], self._deleted.get(name, 0)):
            return False
        before = self._remove(name)
        try:
            owner, item = self._owner(body), self._observe(body)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            log.warning("ignoring %s/%s, which has the operator's labels: %s", *name, str(error)[:200])
            return before is not None
        self._items.setdefault(owner, {})[name] = item
        self._known[name] = version, owner
        return item != before

    def delete(self, body: Object) -> None:
        """Remove an object whose deletion a watch reports."""
        name, version = _identify(body)
        self._deleted[name] = version
        # a known object with a higher version was created after this deletion
        if self._known.get(name, (version + 1,))[0] <= version:
            self._remove(name)

    def forget(self, name: Name) -> None:
        """Remove an object that a read did not find, before a watch reports its deletion."""
        if name in self._known:
            self._deleted[name] = self._known[name][0]
            self._remove(name)

    async def replace(self, pages: AsyncIterator[Page], owner: Hashable = None) -> None:
        """Replace the objects by a list. Objects that are newer than the list are kept.

        Args:
            pages: the list, page by page.
            owner: the owner whose objects were listed; None for a complete list.
        """
        listed: set[Name] = set()
        versions: set[int] = set()
        async for page, version in pages:
            versions.add(version)
            for body in page:
                listed.add(_identify(body)[0])
                # an object in a complete list exists, even if it is older than the list before
                self._update(body, 0 if owner is None else self._listed)
        # lists of several namespaces have different versions: the lowest one holds for all of them
        oldest = min(versions, default=0)
        known = list(self._known) if owner is None else list(self._items.get(owner, ()))
        for name in known:
            if name not in listed and self._known[name][0] <= oldest:
                self._deleted[name] = oldest
                self._remove(name)
        if owner is None:
            self._listed = oldest
            self._deleted = {name: version for name, version in self._deleted.items() if version > oldest}

    def _remove(self, name: Name) -> Item | None:
        if name not in self._known:
            return None
        _, owner = self._known.pop(name)
        item = self._items[owner].pop(name)
        if not self._items[owner]:
            del self._items[owner]
        return item


class Cache:
    """Indexers of the resources, child Jobs and pods."""

    def __init__(self) -> None:
        self.resources: Indexer[Resource] = Indexer(Resource.of, lambda body: _identify(body)[0])
        """Indexed by namespace and name."""
        self.children: Indexer[Child] = Indexer(observe_job, lambda body: job_lineage(body).owner)
        """Indexed by namespace and UID of the resource, like the pods."""
        self.pods: Indexer[StagePod] = Indexer(observe_stage_pod, lambda body: pod_lineage(body).owner)

    def running_pods(self) -> list[StagePod]:
        """List the running pods of child Jobs and resources that exist."""
        return [
            item
            for resource in self.resources
            for item in self.pods.by_owner(resource.owner)
            if item.pod.running
            and any(child.uid == item.lineage.job_uid for child in self.children.by_owner(resource.owner))
        ]

    def resource(self, key: Name) -> Resource | None:
        return next(iter(self.resources.by_owner(key)), None)

    def pending(self) -> Iterator[Resource]:
        """List the resources that may need work even if no event arrives.

        A finished resource is among them while one of its child Jobs is active: its end is written first, and
        the child Job is deleted after that.
        """
        for resource in self.resources:
            active = any(child.active for child in self.children.by_owner(resource.owner))
            if resource.needs_work or active:
                yield resource

    async def replace(self, api: Api) -> None:
        """List everything. Pods come last, so that a pod whose child Job was just deleted is seen as orphaned."""
        await self.resources.replace(api.list_pages(RESOURCES))
        await self.children.replace(api.list_pages(BATCH_JOBS))
        await self.pods.replace(api.list_pages(PODS))

    async def refresh(self, api: Api, resource: Resource) -> Resource | None:
        """Read a resource's child Jobs and pods, and then the resource, again; None when it has been deleted.

        The resource is read after its children. If all of them were deleted together, this read finds
        that the resource is gone, and its children are not created again.

        Args:
            api: the client.
            resource: the resource as it is cached.
        """
        # the API server has no index of labels, so this costs as much as listing all children of the namespace
        labels = {names.JOB_UID: resource.uid}
        await self.children.replace(api.list_pages(BATCH_JOBS, resource.namespace, labels), resource.owner)
        await self.pods.replace(api.list_pages(PODS, resource.namespace, labels), resource.owner)
        try:
            body = await api.read(RESOURCES, resource.namespace, resource.name)
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise
            self.resources.forget((resource.namespace, resource.name))
            return None
        self.resources.update(body)
        return Resource.of(body)


def _identify(body: Object) -> tuple[Name, int]:
    metadata = body["metadata"]
    return (metadata["namespace"], metadata["name"]), int(metadata["resourceVersion"])
