"""One job at a controller whose API server changes between any two calls."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio.client.exceptions import ApiException

from builders import UID, annotated, wire_spec
from lora_operator import controller as controller_module
from lora_operator.api import CONFLICT, FORBIDDEN, JOBS, NOT_FOUND, RESOURCES, Kind, Object, Page
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
        self.quota = False
        """Whether a quota keeps Jobs out."""
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

    async def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        self._called("create", kind)
        name = body["metadata"]["name"]
        if (kind.plural, name) in self.objects:
            raise ApiException(status=CONFLICT)
        if kind == JOBS and self.quota:
            raise ApiException(status=FORBIDDEN, reason="exceeded quota: jobs")
        if kind == JOBS:
            self.created[name] += 1
            ours = {"uid": "j", "creationTimestamp": datetime.now(UTC).isoformat()}
            body = {**body, "metadata": {**body["metadata"], **ours}, "status": {}}
        kept = self._keep(kind, body)
        self._answer()
        return kept

    async def patch_status(self, kind: Kind, namespace: str, name: str, changes: Object) -> Object:
        self._called("patch", kind)
        if (kind.plural, name) not in self.objects:
            raise ApiException(status=NOT_FOUND)
        body = self.objects[kind.plural, name]
        if changes["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise ApiException(status=CONFLICT)
        body = self._keep(kind, body | {"status": merged(body.get("status") or {}, changes["status"])})
        self._answer()
        return body


def merged(before: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    after = dict(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        if value is None:
            after.pop(name, None)
        else:
            after[name] = merged(after.get(name), value)
    return after


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


def captioned() -> World:
    """One whose annotation is over."""
    world = World()
    world.resource = world._keep(RESOURCES, {**world.resource, "status": annotated().to_wire()})
    return world


def status(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.objects["loratrainingjobs", KEY[1]]["status"]
    return found


def test_a_training_starts_after_one_look_at_its_resource(tmp_path: Path) -> None:
    world = captioned()
    asyncio.run(work(controller(world, tmp_path), 1))
    assert world.calls == ["read loratrainingjobs", "create jobs", "patch loratrainingjobs"]
    assert status(world)["training"]["jobName"] in world.created


def test_no_training_starts_on_an_old_view_of_its_resource(tmp_path: Path) -> None:
    world = captioned()
    on = controller(world, tmp_path)
    suspended = wire_spec(annotation={"mode": "Template"}, runPolicy={"suspend": True})
    world._keep(RESOURCES, {**world.resource, "spec": suspended})
    asyncio.run(work(on, 1))
    assert status(world)["phase"] == "Suspended"
    assert not world.created


def test_a_training_that_a_quota_keeps_out_is_no_attempt(tmp_path: Path) -> None:
    world = captioned()
    world.quota = True
    on = controller(world, tmp_path)
    asyncio.run(work(on, 3))
    assert world.calls.count("create jobs") == 3
    assert world.calls.count("patch loratrainingjobs") == 1
    assert (status(world)["phase"], status(world).get("training")) == ("Queued", None)
    told = [c["reason"] for c in status(world)["conditions"] if c["type"] == "Succeeded"]
    assert told == ["QuotaExceeded"]
    world.quota = False
    asyncio.run(work(on, 1))
    assert list(world.created) == [status(world)["training"]["jobName"]]


def test_what_was_made_is_known_before_a_watch_tells_of_it(tmp_path: Path) -> None:
    world = captioned()
    on = controller(world, tmp_path)
    asyncio.run(work(on, 1))
    world.calls.clear()
    asyncio.run(work(on, 1))
    assert world.calls == []


def test_watches_are_given_a_moment_to_agree_before_anybody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = captioned()
    on = controller(world, tmp_path)
    asyncio.run(work(on, 1))
    name = status(world)["training"]["jobName"]
    del world.objects["jobs", name]
    on.cache.children.lose((KEY[0], name))
    world.calls.clear()
    asyncio.run(work(on, 2))
    assert world.calls == [], "it may come back with the next event"
    later = controller_module.monotonic() + controller_module.SETTLE_SECONDS
    monkeypatch.setattr(controller_module, "monotonic", lambda: later)
    asyncio.run(work(on, 1))
    assert world.calls[:4] == ["list jobs", "list pods", "read loratrainingjobs", "create jobs"]
    assert world.created[name] == 2


def test_who_takes_over_doubts_all_and_who_lists_again_nothing(tmp_path: Path) -> None:
    world = captioned()
    on = controller(world, tmp_path)
    asyncio.run(on.take_over())
    world.calls.clear()
    asyncio.run(work(on, 1))
    looked = ["list jobs", "list pods", "read loratrainingjobs"]
    assert world.calls == [*looked, "create jobs", "patch loratrainingjobs"]
    world = captioned()
    on = controller(world, tmp_path)
    asyncio.run(on.resync())
    world.calls.clear()
    asyncio.run(work(on, 1))
    assert world.calls[:2] == ["read loratrainingjobs", "create jobs"]
