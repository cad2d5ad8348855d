"""One job at a controller whose API server changes between any two calls."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio.client.exceptions import ApiException

from builders import UID, wire_spec
from lora_operator.api import CONFLICT, JOBS, NOT_FOUND, RESOURCES, Kind, Object, Page
from lora_operator.apply import Cluster
from lora_operator.controller import Controller
from lora_operator.settings import Images, ProfilesFile

KEY = ("studio", "statue")
PROFILES = {
    "default": {
        "store": {"endpoint": "127.0.0.1:9"},
        "models": {"sdxl-base-1.0": {"source": "store", "key": "models/x/"}},
    }
}


class World:
    """An API server with one resource.

    Args:
        call: the number of the call before which a person deletes the resource; its Job goes with it.
        anew: whether another of the same name is made then.
        lost: the calls whose answers are lost, in order.
    """

    def __init__(self, *lost: str, call: int = 0, anew: bool = False) -> None:
        self.deleted_before = call
        self.anew = anew
        self.lost = list(lost)
        self.version = 1
        self.calls: list[str] = []
        self.created: Counter[str] = Counter()
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.resource = self._add_resource(UID)

    def _add_resource(self, uid: str) -> dict[str, Any]:
        metadata = {"namespace": KEY[0], "name": KEY[1], "uid": uid, "generation": 1}
        metadata["creationTimestamp"] = "2026-03-01T12:00:00Z"
        return self._keep(
            RESOURCES, {"metadata": metadata, "spec": wire_spec(annotation={"mode": "Template"})}
        )

    def _keep(self, kind: Kind, body: Object) -> dict[str, Any]:
        self.version += 1
        metadata = body["metadata"] | {"resourceVersion": str(self.version)}
        self.objects[kind.plural, metadata["name"]] = kept = {**body, "metadata": metadata}
        return kept

    def _called(self, verb: str, kind: Kind) -> None:
        self.calls.append(f"{verb} {kind.plural}")
        if len(self.calls) == self.deleted_before:
            self.version += 1
            self.objects.clear()
            if self.anew:
                self._add_resource("another")

    def _answer(self) -> None:
        if self.calls[-1] in self.lost:
            self.lost.remove(self.calls[-1])
            raise ApiException(status=504, reason="the answer is lost")

    async def read(self, kind: Kind, namespace: str, name: str) -> Object:
        self._called("read", kind)
        if (kind.plural, name) not in self.objects:
            raise ApiException(status=NOT_FOUND)
        return self.objects[kind.plural, name]

    async def list_pages(self, kind: Kind, *_: object, **__: object) -> AsyncIterator[Page]:
        self._called("list", kind)
        yield [body for (plural, _), body in self.objects.items() if plural == kind.plural], self.version

    async def create(self, kind: Kind, namespace: str, body: Object) -> None:
        self._called("create", kind)
        name = body["metadata"]["name"]
        if (kind.plural, name) in self.objects:
            raise ApiException(status=CONFLICT)
        if kind == JOBS:
            self.created[name] += 1
            ours = {"uid": "j", "creationTimestamp": "2026-03-01T12:00:01Z"}
            body = {**body, "metadata": {**body["metadata"], **ours}, "status": {}}
        self._keep(kind, body)
        self._answer()

    async def patch_status(self, kind: Kind, namespace: str, name: str, changes: Object) -> Object:
        self._called("patch", kind)
        if (kind.plural, name) not in self.objects:
            raise ApiException(status=NOT_FOUND)
        body = self.objects[kind.plural, name]
        if changes["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise ApiException(status=CONFLICT)
        body = self._keep(kind, body | {"status": changes["status"]})
        self._answer()
        return body


def controller(world: World, folder: Path) -> Controller:
    path = folder / "profiles.yaml"
    path.write_text(yaml.safe_dump({"profiles": PROFILES}))
    made = Controller(Cluster(world, Images("annotate:test", "train:test")), ProfilesFile(path))  # type: ignore[arg-type]
    made.cache.resources.put(world.resource)
    return made


async def work(on: Controller, times: int) -> None:
    for _ in range(times):
        try:
            await on.reconcile(KEY)
        except ApiException:
            continue


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("lost", ["create jobs", "patch loratrainingjobs"])
@pytest.mark.parametrize("call", range(2, 6))
def test_whenever_a_resource_is_deleted_its_job_is_not_made_again(
    tmp_path: Path, call: int, lost: str, anew: bool
) -> None:
    world = World(lost, call=call, anew=anew)
    on = controller(world, tmp_path)
    asyncio.run(work(on, 4))
    assert len(world.calls) >= call
    asyncio.run(on.resync())
    asyncio.run(work(on, 2))
    assert set(world.created.values()) == {1}, world.calls
    jobs = [body for (plural, _), body in world.objects.items() if plural == "jobs"]
    assert [job["metadata"]["ownerReferences"][0]["uid"] for job in jobs] == (["another"] if anew else [])


def test_an_answer_that_is_lost_costs_a_look_and_no_second_job(tmp_path: Path) -> None:
    world = World("create jobs")
    asyncio.run(work(controller(world, tmp_path), 3))
    assert list(world.created.values()) == [1]
    assert world.objects["loratrainingjobs", KEY[1]]["status"]["phase"] == "Annotating"
