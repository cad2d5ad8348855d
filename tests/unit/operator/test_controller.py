"""One job at a controller whose API server changes between any two calls."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio.client.exceptions import ApiException

from lora_api.stages import StageName
from lora_api.status import CaptionsStatus, JobStatus, Phase
from lora_operator import running_limits, staleness
from lora_operator.api import BATCH_JOBS, CONFLICT, FORBIDDEN, NOT_FOUND, RESOURCES, Kind, Object, Page
from lora_operator.apply import Cluster
from lora_operator.controller import Controller
from lora_operator.decide import DeleteChildJob, decide
from lora_operator.names import child_name
from lora_operator.settings import Images, ProfilesFile
from lora_operator.snapshot import Snapshot
from tests.support.builders import (
    CAPTIONED,
    NOW,
    UID,
    annotated,
    child,
    pod,
    seconds,
    snapshot,
    training,
    wire_spec,
)
from tests.support.raw_children import raw_pod

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
        self.deleted: list[tuple[str, str]] = []
        """Name and UID of each delete call."""
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
        if kind == BATCH_JOBS and self.quota:
            raise ApiException(status=FORBIDDEN, reason="exceeded quota: jobs")
        if kind == BATCH_JOBS:
            self.created[name] += 1
            own_metadata = {"uid": "j", "creationTimestamp": datetime.now(UTC).isoformat()}
            body = {**body, "metadata": {**body["metadata"], **own_metadata}, "status": {}}
        kept = self._keep(kind, body)
        self._answer()
        return kept

    async def patch(self, kind: Kind, namespace: str, name: str, changes: Object) -> Object:
        self._called("patch", kind)
        return self._keep(kind, merged(self.objects[kind.plural, name], changes))

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str, _: str = "") -> None:
        self._called("delete", kind)
        self.deleted.append((name, uid))
        if self.objects[kind.plural, name]["metadata"]["uid"] == uid:
            del self.objects[kind.plural, name]

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
    made.cache.resources.update(world.resource)
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


def test_a_training_starts_without_a_read(tmp_path: Path) -> None:
    world = captioned()
    asyncio.run(work(controller(world, tmp_path), 1))
    assert world.calls == ["create jobs", "patch loratrainingjobs"]
    assert status(world)["training"]["jobName"] in world.created


def test_a_training_that_starts_as_its_job_is_suspended_is_stopped(tmp_path: Path) -> None:
    world = captioned()
    on = controller(world, tmp_path)
    suspended = wire_spec(annotation={"mode": "Template"}, runPolicy={"suspend": True})
    # the watch has yet to report it
    world._keep(RESOURCES, {**world.resource, "spec": suspended})
    asyncio.run(work(on, 1))
    assert world.created
    assert status(world)["phase"] == "Annotating", "the status write is refused"
    asyncio.run(work(on, 1))
    assert status(world)["phase"] == "Suspended"
    (name,) = world.created
    assert ("jobs", name) not in world.objects


def test_a_training_that_a_quota_keeps_out_is_no_attempt(tmp_path: Path) -> None:
    world = captioned()
    world.quota = True
    on = controller(world, tmp_path)
    asyncio.run(work(on, 3))
    assert world.calls.count("create jobs") == 3
    assert world.calls.count("patch loratrainingjobs") == 1
    assert (status(world)["phase"], status(world).get("training")) == ("Queued", None)
    reasons = [c["reason"] for c in status(world)["conditions"] if c["type"] == "Succeeded"]
    assert reasons == ["QuotaExceeded"]
    world.quota = False
    asyncio.run(work(on, 1))
    assert list(world.created) == [status(world)["training"]["jobName"]]


def test_a_later_attempt_that_a_quota_keeps_out_is_tried_again_without_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staleness, "SETTLE_SECONDS", 0.0)
    world = World()
    suspended = snapshot(spec={"runPolicy": {"suspend": True}}, status=training(job_uid="gone"))
    resumed = {**world.resource, "status": decide(suspended, NOW).status.to_wire()}
    world.resource = world._keep(RESOURCES, resumed)
    world.quota = True
    on = controller(world, tmp_path)
    asyncio.run(work(on, 5))
    counts = Counter(world.calls)
    assert counts["create jobs"] == 5
    assert (counts["list jobs"], counts["list pods"], counts["read loratrainingjobs"]) == (1, 1, 1)
    world.quota = False
    asyncio.run(work(on, 1))
    (name,) = world.created
    assert status(world)["training"]["jobName"] == name
    del world.objects["jobs", name]
    on.cache.children.forget((KEY[0], name))
    asyncio.run(work(on, 1))
    assert Counter(world.calls)["list jobs"] == 2, "a child Job that is missing is looked for"


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
    on.cache.children.forget((KEY[0], name))
    world.calls.clear()
    asyncio.run(work(on, 2))
    assert world.calls == [], "it may come back with the next event"
    later = staleness.monotonic() + staleness.SETTLE_SECONDS
    monkeypatch.setattr(staleness, "monotonic", lambda: later)
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
    assert world.calls[:2] == ["create jobs", "patch loratrainingjobs"]


async def scheduled(on: Controller, times: int) -> list[bool]:
    """Whether the job is queued or has a timer after each reconcile, as long as it has not ended."""
    found = []
    for _ in range(times):
        await work(on, 1)
        resource = on.cache.resource(KEY)
        if resource is None or resource.ended:
            break
        found.append(KEY in on.queue._timers or len(on.queue) > 0)
    return found


@pytest.mark.parametrize("quota", [False, True])
@pytest.mark.parametrize("begin", ["new", "captioned"])
def test_after_each_reconcile_a_job_that_has_not_ended_has_a_next_one(
    tmp_path: Path, begin: str, quota: bool
) -> None:
    world = World() if begin == "new" else captioned()
    world.quota = quota
    found = asyncio.run(scheduled(controller(world, tmp_path), 4))
    assert found == [True] * 4


def annotating() -> JobStatus:
    """The status of a job whose annotation was started."""
    name = child_name("statue", UID, StageName.ANNOTATE, 1)
    return annotated(captions=CaptionsStatus(attempt=1, job_name=name))


GONE_SIDECAR = child(StageName.ANNOTATE, pod("Failed", CAPTIONED, exit_code=0), uid="annotate")
GIVEN_UP = child(StageName.TRAIN, pod(exit_code=70, finished_at=NOW - seconds(60)), uid="train")


@pytest.mark.parametrize(
    ("case", "calls"),
    [
        # the stage ended well, but a container beside it failed, so that Kubernetes would retry the child Job
        (snapshot(children=(GONE_SIDECAR,), status=annotating()), ["create jobs"]),
        # the stage failed, and a container beside it keeps the pod: the attempt is charged
        (snapshot(children=(GIVEN_UP,), status=training()), []),
    ],
)
def test_a_child_job_is_deleted_only_after_its_end_is_in_the_status(case: Snapshot, calls: list[str]) -> None:
    decision = decide(case, NOW)
    assert decision.status != case.status
    assert [type(action) for action in decision.actions].count(DeleteChildJob) == 1
    world = World()
    world.delete = lambda *_: pytest.fail("the evidence is deleted")  # type: ignore[method-assign]
    cluster = Cluster(world, Images("annotate:test", "train:test"))  # type: ignore[arg-type]
    with pytest.raises(ApiException):
        asyncio.run(cluster.apply_decision(case, decision, "an old version"))
    assert world.calls == [*calls, "patch loratrainingjobs"]


def test_a_child_job_that_lost_its_labels_gets_them_back(tmp_path: Path) -> None:
    world = captioned()
    on = controller(world, tmp_path)
    asyncio.run(work(on, 1))
    (name,) = world.created
    body = world.objects["jobs", name]
    labels = dict(body["metadata"]["labels"])
    body["metadata"]["labels"] = {}
    on.cache.children.forget((KEY[0], name))
    on._staleness.mark_unverified([KEY])
    asyncio.run(work(on, 1))
    assert world.objects["jobs", name]["metadata"]["labels"] == labels
    assert on.cache.children.by_owner((KEY[0], UID))
    assert list(world.created.values()) == [1]


@pytest.mark.parametrize("others", [[], [{"kind": "Workload", "name": "w", "uid": "w"}]])
def test_a_child_job_that_lost_its_owner_gets_it_back(tmp_path: Path, others: list[dict[str, Any]]) -> None:
    world = captioned()
    on = controller(world, tmp_path)
    asyncio.run(work(on, 1))
    (name,) = world.created
    body = world.objects["jobs", name]
    owners = body["metadata"]["ownerReferences"]
    body["metadata"]["ownerReferences"] = list(others)
    on.cache.children.forget((KEY[0], name))
    on._staleness.mark_unverified([KEY])
    asyncio.run(work(on, 1))
    assert world.objects["jobs", name]["metadata"]["ownerReferences"] == [*others, *owners]
    assert on.cache.children.by_owner((KEY[0], UID))
    assert status(world)["phase"] != "Failed"
    assert world.deleted == []


def test_a_child_job_that_another_controller_took_over_is_left_to_it(tmp_path: Path) -> None:
    world = captioned()
    on = controller(world, tmp_path)
    asyncio.run(work(on, 1))
    (name,) = world.created
    other = {"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "o", "controller": True}
    world.objects["jobs", name]["metadata"]["ownerReferences"] = [other]
    on.cache.children.forget((KEY[0], name))
    on._staleness.mark_unverified([KEY])
    asyncio.run(work(on, 1))
    assert world.objects["jobs", name]["metadata"]["ownerReferences"] == [other]
    assert "NameConflict" in str(status(world)["conditions"])


def forged(folder: Path) -> tuple[World, dict[str, Any]]:
    """A captioned job, and a copy of the operator's training Job that a tenant has created before the operator."""
    earlier = captioned()
    asyncio.run(work(controller(earlier, folder), 1))
    (name,) = earlier.created
    body = copy.deepcopy(earlier.objects["jobs", name])
    body["metadata"]["uid"] = "forged"
    return captioned(), body


def test_a_job_of_another_owner_is_not_adopted(tmp_path: Path) -> None:
    world, body = forged(tmp_path)
    del body["metadata"]["ownerReferences"]
    world._keep(BATCH_JOBS, body)
    asyncio.run(work(controller(world, tmp_path), 2))
    assert "forged" not in str(status(world))
    assert status(world)["phase"] == "Failed"
    assert "NameConflict" in str(status(world)["conditions"])
    assert world.deleted == [], "it belongs to another controller"


def test_a_job_that_runs_something_else_is_deleted(tmp_path: Path) -> None:
    world, body = forged(tmp_path)
    body["spec"]["template"]["spec"]["containers"][0]["image"] = "tenant/image"
    world._keep(BATCH_JOBS, body)
    on = controller(world, tmp_path)
    asyncio.run(work(on, 1))
    assert world.deleted == [(body["metadata"]["name"], "forged")]
    assert "forged" not in str(status(world))
    asyncio.run(work(on, 2))
    assert status(world)["training"]["jobUID"] == "j"


def test_a_job_seen_later_does_not_take_the_place_of_one_that_is_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the watch reports jobs of the same second in any order; the child Job of the admitted one is on its way
    monkeypatch.setattr("lora_operator.running_limits.ADMISSION_SECONDS", 0.0)
    world = World()
    on = controller(world, tmp_path)
    assert on.limits.admit("default", 1) == {UID}
    metadata = world.resource["metadata"]
    early = world.resource | {"metadata": metadata | {"name": "early", "uid": "0"}}
    on.cache.resources.update(early)
    on.cache.resources.update(world.resource)
    assert on.limits.admit("default", 1) == {UID}


class TwoNamespaces(World):
    """An API server whose first namespace refuses child Jobs while `quota` is set; `crowd` has a job too."""

    refused_status = FORBIDDEN

    def __init__(self) -> None:
        super().__init__()
        self.quota = True
        metadata = self.resource["metadata"] | {"namespace": "crowd", "name": "bust", "uid": "b" * 36}
        metadata["creationTimestamp"] = "2026-03-01T12:00:01Z"
        self.other = self._keep(RESOURCES, self.resource | {"metadata": metadata})

    async def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        if kind == BATCH_JOBS and self.quota and namespace == KEY[0]:
            self._called("create", kind)
            raise ApiException(status=self.refused_status, reason="exceeded quota: jobs")
        quota, self.quota = self.quota, False
        try:
            return await super().create(kind, namespace, body)
        finally:
            self.quota = quota


OTHER_KEY = ("crowd", "bust")
LATER = NOW + seconds(3600)


def one_at_once(world: TwoNamespaces, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Controller:
    """A controller whose profile lets one job run."""
    monkeypatch.setitem(PROFILES["default"], "maxRunningJobs", 1)
    on = controller(world, folder)
    on.cache.resources.update(world.other)
    return on


def test_a_failed_job_keeps_its_place_until_its_pod_has_terminated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = TwoNamespaces()
    on = one_at_once(world, tmp_path, monkeypatch)
    terminating = raw_pod(uid=UID, phase="Running")
    terminating["metadata"] |= {"deletionTimestamp": "2026-03-01T12:00:00Z", "resourceVersion": "50"}
    uid = terminating["metadata"]["ownerReferences"][0]["uid"]
    ended = training(job_uid=uid).model_copy(update={"phase": Phase.FAILED})
    on.cache.resources.update(world._keep(RESOURCES, {**world.resource, "status": ended.to_wire()}))
    on.cache.pods.update(terminating)
    assert on.limits.admit("default", 1) == {UID}
    forged = raw_pod(uid=UID, attempt=2, name="forged", phase="Running")
    on.cache.pods.update(forged)
    terminating["metadata"]["resourceVersion"] = "51"
    on.cache.pods.delete(terminating)
    assert on.limits.admit("default", 1, again=True) == {world.other["metadata"]["uid"]}


def reason_and_message(world: World, name: str) -> tuple[str, str]:
    """The reason and the message of a job's condition Succeeded."""
    conditions = world.objects["loratrainingjobs", name]["status"]["conditions"]
    return next((c["reason"], c["message"]) for c in conditions if c["type"] == "Succeeded")


async def reconcile(on: Controller, *keys: tuple[str, str]) -> None:
    for key in keys:
        try:
            await on.reconcile(key)
        except ApiException:
            continue


def test_a_refused_job_leaves_its_place_and_keeps_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = TwoNamespaces()
    on = one_at_once(world, tmp_path, monkeypatch)
    asyncio.run(reconcile(on, OTHER_KEY, KEY))
    assert reason_and_message(world, OTHER_KEY[1])[0] == "Queued"
    assert reason_and_message(world, KEY[1]) == ("QuotaExceeded", "exceeded quota: jobs")
    assert OTHER_KEY in on.queue._waiting, "the place is offered at once"
    asyncio.run(reconcile(on, OTHER_KEY))
    assert world.objects["loratrainingjobs", OTHER_KEY[1]]["status"]["phase"] == "Annotating"
    world.calls.clear()
    asyncio.run(reconcile(on, KEY, KEY, OTHER_KEY))
    assert world.calls == [], "neither a write nor another try while the other job runs"
    assert reason_and_message(world, KEY[1]) == ("QuotaExceeded", "exceeded quota: jobs")


def test_a_refused_job_is_tried_again_when_it_is_due_and_there_is_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = TwoNamespaces()
    on = one_at_once(world, tmp_path, monkeypatch)
    asyncio.run(reconcile(on, KEY, OTHER_KEY))
    del world.objects["loratrainingjobs", OTHER_KEY[1]]
    on.cache.resources.forget(OTHER_KEY)
    later = running_limits.monotonic() + 61.0
    monkeypatch.setattr(running_limits, "monotonic", lambda: later)
    on.queue._waiting.clear()
    on.limits.admit_all()
    assert KEY in on.queue._waiting
    world.quota = False
    asyncio.run(reconcile(on, KEY))
    assert world.objects["loratrainingjobs", KEY[1]]["status"]["phase"] == "Annotating"


def test_a_refused_job_that_is_due_is_not_passed_over_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = TwoNamespaces()
    on = one_at_once(world, tmp_path, monkeypatch)
    asyncio.run(reconcile(on, KEY))
    assert on.limits.admit("default", 1) == {world.other["metadata"]["uid"]}
    later = running_limits.monotonic() + 61.0
    monkeypatch.setattr(running_limits, "monotonic", lambda: later)
    on.limits._admitted.clear()
    assert on.limits.admit("default", 1) == {UID}, "it is the oldest job, and due"


def test_a_job_whose_start_raises_errors_leaves_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an admission webhook that does not answer is error 500, and may concern one namespace only
    world = TwoNamespaces()
    world.refused_status = 500
    on = one_at_once(world, tmp_path, monkeypatch)
    asyncio.run(reconcile(on, KEY))
    asyncio.run(reconcile(on, KEY, OTHER_KEY))
    assert not world.created, "after one error its child Job may exist"
    asyncio.run(reconcile(on, KEY, OTHER_KEY))
    assert world.objects["loratrainingjobs", OTHER_KEY[1]]["status"]["phase"] == "Annotating"


def test_a_job_that_its_profile_no_longer_allows_leaves_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = TwoNamespaces()
    accepted = annotated().to_wire()
    world.resource = world._keep(RESOURCES, {**world.resource, "status": accepted})
    monkeypatch.setitem(PROFILES["default"], "namespaces", ["crowd"])
    on = one_at_once(world, tmp_path, monkeypatch)
    asyncio.run(reconcile(on, KEY, OTHER_KEY))
    assert reason_and_message(world, KEY[1])[0] == "ProfileNotFound"
    assert world.objects["loratrainingjobs", OTHER_KEY[1]]["status"]["phase"] == "Annotating"


def test_a_failed_job_that_is_tried_again_waits_for_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = TwoNamespaces()
    world.quota = False
    over = decide(snapshot(spec={"runPolicy": {"activeDeadlineSeconds": 60}}, status=annotated()), LATER)
    assert over.status.phase == Phase.FAILED
    world.resource = world._keep(RESOURCES, {**world.resource, "status": over.status.to_wire()})
    on = one_at_once(world, tmp_path, monkeypatch)
    asyncio.run(reconcile(on, OTHER_KEY))
    assert len(world.created) == 1, "the other job has the only place"
    again = wire_spec(annotation={"mode": "Template"}, runPolicy={"retry": 1})
    on.cache.resources.update(
        world._keep(RESOURCES, {**world.objects["loratrainingjobs", KEY[1]], "spec": again})
    )
    asyncio.run(reconcile(on, KEY, KEY))
    assert len(world.created) == 1
    assert reason_and_message(world, KEY[1])[0] == "Queued"
    assert "allows 1 running jobs" in reason_and_message(world, KEY[1])[1]
    del world.objects["loratrainingjobs", OTHER_KEY[1]]
    on.cache.resources.forget(OTHER_KEY)
    on.limits.admit("default", 1, again=True)
    asyncio.run(reconcile(on, KEY))
    assert len(world.created) == 2


def test_a_job_whose_child_job_is_deleted_keeps_its_place_until_its_pod_has_terminated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `kubectl delete job` deletes in the background: the Job is gone at once, and its pod saves a checkpoint
    world = TwoNamespaces()
    monkeypatch.setattr("lora_operator.running_limits.ADMISSION_SECONDS", 0.0)
    on = one_at_once(world, tmp_path, monkeypatch)
    terminating = raw_pod(uid=UID, phase="Running")
    terminating["metadata"] |= {"deletionTimestamp": "2026-03-01T12:00:00Z", "resourceVersion": "50"}
    runs = training(job_uid=terminating["metadata"]["ownerReferences"][0]["uid"])
    early = {
        **world.other,
        "metadata": world.other["metadata"] | {"creationTimestamp": "2026-03-01T11:00:00Z"},
    }
    on.cache.resources.update(world._keep(RESOURCES, early))
    on.cache.resources.update(world._keep(RESOURCES, {**world.resource, "status": runs.to_wire()}))
    on.cache.pods.update(terminating)
    assert on.limits.admit("default", 1) == {UID}
    terminating["metadata"]["resourceVersion"] = "51"
    on.cache.pods.delete(terminating)
    assert on.limits.admit("default", 2) == {UID, world.other["metadata"]["uid"]}


def test_a_deleted_job_keeps_its_place_until_its_pod_has_terminated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the resource is gone at once; its pod saves a checkpoint
    world = TwoNamespaces()
    on = one_at_once(world, tmp_path, monkeypatch)
    live = raw_pod(uid=UID, phase="Running")
    live["metadata"]["resourceVersion"] = "50"
    runs = training(job_uid=live["metadata"]["ownerReferences"][0]["uid"])
    on.cache.resources.update(world._keep(RESOURCES, {**world.resource, "status": runs.to_wire()}))
    on.cache.pods.update(live)
    assert on.limits.admit("default", 1) == {UID}
    on.cache.resources.forget(KEY)
    for _ in range(2):
        assert on.limits.admit("default", 1, again=True) == {UID}
    live["metadata"]["resourceVersion"] = "51"
    on.cache.pods.delete(live)
    assert on.limits.admit("default", 1, again=True) == {world.other["metadata"]["uid"]}
