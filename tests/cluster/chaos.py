"""A round of chaos: twenty jobs, each with a fate of its own, under an operator that is killed and hears badly."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judge import Judge
from kubelet import End, FakeKubelet, Stuck, ended
from kubernetes import client
from proxy import BadLine, Faults
from wire import Object, Wire, WireError

from builders import ADAPTER, CAPTIONED, REUSED, TRAINED, failed, wire_spec
from lora_api import API_VERSION, GROUP, KIND, PLURAL, VERSION
from lora_api.reasons import Reason
from lora_api.steps import StepName
from lora_operator import names

ANNOTATE, TRAIN = StepName.ANNOTATE, StepName.TRAIN
ROUND_SECONDS = 600.0
"""Far more than a round takes; only a machine with no time for its tests needs it."""
KILLS = 2

Ends = dict[tuple[StepName, int], End | Stuck | None]


@dataclass(frozen=True)
class Role:
    """A kind of job: what it asks for, what happens to it, and how it must end."""

    name: str
    reason: str = Reason.TRAINED
    phase: str = "Succeeded"
    """Empty: the resource is gone in the end."""
    spec: dict[str, Any] = field(default_factory=dict)
    ends: Ends = field(default_factory=dict)
    """Of a step's n-th pod; all others end well."""
    then: Callable[[Round, str], Awaitable[None]] | None = None
    """What a person does meanwhile."""
    more_pods: int = 0
    """How many pods beside the first of each step it may need."""


@dataclass
class Round:
    """One round as it runs."""

    seed: str
    namespace: str
    wire: Wire
    judge: Judge

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.seed}/round")
        self._resources = f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}"

    async def create(self, role: Role) -> None:
        spec = wire_spec(**{"annotation": {"mode": "Template"}, **role.spec})
        metadata = {"name": role.name, "namespace": self.namespace}
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
        await self.wire.call("POST", self._resources, body)

    async def change(self, name: str, **spec: Any) -> None:
        await self.wire.call("PATCH", f"{self._resources}/{name}", {"spec": spec})

    async def delete(self, name: str) -> None:
        await self.wire.call("DELETE", f"{self._resources}/{name}")

    async def pause(self, least: float, most: float) -> None:
        await asyncio.sleep(self.random.uniform(least, most))

    async def until(self, phase: str, name: str) -> None:
        while self.judge.phase(name) != phase:
            await asyncio.sleep(0.05)

    async def one_of(self, kind: str, name: str) -> Object:
        """A live child of a job, as soon as there is one."""
        while True:
            resource = self.judge.now["resource"].get(name)
            children = [h for h in self.judge.now[kind].values() if resource and h.owner[0] == resource.uid]
            if alive := [h.body for h in children if h.alive]:
                return self.random.choice(alive)
            await asyncio.sleep(0.05)


async def approve(on: Round, name: str) -> None:
    await on.until("AwaitingApproval", name)
    captions = on.judge.now["resource"][name].body["status"]["captions"]
    await on.pause(0, 1)
    await on.change(name, annotation={"approvedCaptions": f"sha256:{captions['sha256']}"})


async def suspend_and_resume(on: Round, name: str) -> None:
    await on.pause(0, 5)
    await on.change(name, runPolicy={"suspend": True})
    await on.pause(0, 3)
    await on.change(name, runPolicy={"suspend": False})


async def delete_a_job(on: Round, name: str) -> None:
    await on.pause(0, 4)
    job = await on.one_of("job", name)
    how = on.random.choice(["Background", "Foreground"])
    path = f"/apis/batch/v1/namespaces/{on.namespace}/jobs/{job['metadata']['name']}"
    await on.wire.call("DELETE", path, propagationPolicy=how)


async def delete_a_pod(on: Round, name: str) -> None:
    await on.pause(0, 4)
    pod = await on.one_of("pod", name)
    force = {"gracePeriodSeconds": 0} if on.random.random() < 0.3 else {}
    path = f"/api/v1/namespaces/{on.namespace}/pods/{pod['metadata']['name']}"
    await on.wire.call("DELETE", path, **force)


async def delete_it(on: Round, name: str) -> None:
    await on.pause(0, 6)
    await on.delete(name)


def broken(reason: Reason, code: int) -> End:
    return ended(failed(reason), code)


def evicted(why: str) -> End:
    return End(143, "", "Error", disrupted=why)


MUTE = End(0, "no result")
BAD = {"phase": "Failed"}
ROLES = (
    Role("plain"),
    Role("by-llm", spec={"annotation": {"mode": "LLM"}}),
    Role("to-approve", spec={"annotation": {"mode": "Template", "approval": "Required"}}, then=approve),
    Role("reused", Reason.REUSED),
    Role("suspended", then=suspend_and_resume, more_pods=1),
    Role("suspended-too", spec={"annotation": {"mode": "LLM"}}, then=suspend_and_resume, more_pods=1),
    Role("job-deleted", then=delete_a_job, more_pods=1),
    Role("job-deleted-too", then=delete_a_job, more_pods=1),
    Role("pod-deleted", then=delete_a_pod, more_pods=1),
    Role("deleted", "", "", then=delete_it),
    Role("short-lived", "", "", spec={"runPolicy": {"ttlSecondsAfterFinished": 1}}),
    Role("store-away", ends={(TRAIN, 1): broken(Reason.STORE_UNAVAILABLE, 69)}, more_pods=1),
    Role("interrupted", ends={(ANNOTATE, 1): End(75, "", "Error")}, more_pods=1),
    Role(
        "evicted",
        spec={"runPolicy": {"backoffLimit": 0}},
        ends={(TRAIN, 1): evicted("EvictionByEvictionAPI")},
        more_pods=1,
    ),
    Role("mute", ends={(TRAIN, 1): MUTE}, more_pods=1),
    Role(
        "out-of-memory",
        Reason.OUT_OF_MEMORY,
        **BAD,
        spec={"runPolicy": {"backoffLimit": 0}},
        ends={(TRAIN, 1): End(137, "", "OOMKilled")},
    ),
    Role(
        "bad-images", Reason.DATASET_INVALID, **BAD, ends={(ANNOTATE, 1): broken(Reason.DATASET_INVALID, 65)}
    ),
    Role("no-profile", Reason.PROFILE_NOT_FOUND, **BAD, spec={"profile": "nope"}),
    Role(
        "endless",
        Reason.DEADLINE_EXCEEDED,
        **BAD,
        spec={"runPolicy": {"activeDeadlineSeconds": 6}},
        ends={(TRAIN, 1): None},
    ),
    Role(
        "no-node",
        Reason.START_DEADLINE_EXCEEDED,
        **BAD,
        spec={"runPolicy": {"startDeadlineSeconds": 5}},
        ends={(TRAIN, 1): Stuck(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")},
    ),
)


class Fates(FakeKubelet):
    """Every pod ends as its job's role says, after a time of its own, and publishes under its own name."""

    def __init__(self, api: client.ApiClient, namespace: str, seed: str) -> None:
        super().__init__(api, namespace)
        self._random = random.Random(f"{seed}/pods")
        self._roles = {role.name: role for role in ROLES}
        self._fates: dict[str, End | Stuck | None] = {}

    def fate(self, pod: Object, step: StepName, number: int) -> End | Stuck | None:
        uid = pod["metadata"]["uid"]
        if uid not in self._fates:
            self._fates[uid] = self._choose(pod, step, number)
        return self._fates[uid]

    def _choose(self, pod: Object, step: StepName, number: int) -> End | Stuck | None:
        role = self._roles[pod["metadata"]["annotations"][names.JOB_NAME]]
        seconds = self._random.uniform(0.0, 1.5)
        scripted = role.ends.get((step, number), ...)
        if isinstance(scripted, End):
            return End(
                scripted.exit_code, scripted.message, scripted.reason, seconds, disrupted=scripted.disrupted
            )
        if scripted is not ...:
            return scripted
        uid = pod["metadata"]["uid"]
        adapter = ADAPTER.model_copy(update={"uri": f"s3://loras/{uid}/adapter.safetensors"})
        if step == TRAIN:
            result = TRAINED.model_copy(update={"adapter": adapter})
        elif role.reason == Reason.REUSED:
            result = REUSED.model_copy(update={"adapter": adapter})
        else:
            result = CAPTIONED
        return End(0, ended(result).message, seconds=seconds)


class Keeper:
    """Starts the operator again whenever it ends, as a kubelet would, and kills it now and then."""

    def __init__(self, environment: dict[str, str], log: Path, chance: random.Random) -> None:
        self._environment = environment
        self._log = log
        self._random = chance
        self.starts = 0
        self.exits: list[int] = []

    async def run(self) -> None:
        with self._log.open("ab") as log:
            while True:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "lora_operator", env=self._environment, stdout=log, stderr=log
                )
                self.starts += 1
                try:
                    if len([code for code in self.exits if code == -signal.SIGKILL]) < KILLS:
                        await self._kill_later(process)
                    self.exits.append(await process.wait())
                except asyncio.CancelledError:
                    process.kill()
                    await process.wait()
                    raise
                await asyncio.sleep(self._random.uniform(0, 0.5))

    async def _kill_later(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(self._random.uniform(1.5, 5)):
                await process.wait()
        except TimeoutError:
            process.kill()


@dataclass
class Outcome:
    """What a round came to."""

    wrong: list[str]
    seconds: float
    faults: Counter[str]
    operator_starts: int
    operator_exits: list[int]
    happenings: int

    def __str__(self) -> str:
        faults = sum(self.faults.values())
        return (
            f"{self.seconds:.1f} s, {faults} faults, {self.operator_starts} starts of the operator "
            f"(it ended with {self.operator_exits}), {self.happenings} happenings, {len(self.wrong)} wrong"
        )


async def play(
    api: client.ApiClient, namespace: str, operator: Wire, folder: Path, seed: str, faults: Faults
) -> Outcome:
    """Play one round in a namespace of its own.

    Args:
        operator: the operator's own access to the API server.
        folder: has the profiles file; the operator's log goes there, and all that happened if anything was wrong.
        seed: decides who does what when; the machine's own timing is not in its hand.
    """
    began = time.monotonic()
    kubelet = Fates(api, namespace, seed)
    async with Wire.of(api) as wire, Judge(wire, namespace) as judge, BadLine(operator, seed, faults) as line:
        game = Round(seed, namespace, wire, judge)
        environment = os.environ | {
            "KUBECONFIG": str(line.write_kubeconfig(folder / "bad-line.kubeconfig")),
            "LORA_ANNOTATE_IMAGE": "annotate:test",
            "LORA_TRAIN_IMAGE": "train:test",
            "LORA_PROFILES": str(folder / "profiles.yaml"),
            "LORA_WATCH_NAMESPACES": namespace,
            "LORA_HOST": "127.0.0.1",
            "LORA_PORT": "0",
        }
        keeper = Keeper(environment, folder / "operator.log", random.Random(f"{seed}/keeper"))
        tasks = [asyncio.create_task(work) for work in (kubelet.run(), keeper.run())]
        tasks += [asyncio.create_task(_perform(game, role)) for role in ROLES]
        try:
            wrong = await _watch_end(game)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        wrong += [f"the game itself: {e!r}" for e in results if isinstance(e, Exception)]
        wrong += judge.violations() + _surplus(judge)
        if wrong:
            (folder / "happenings.txt").write_text("\n".join(judge.record()))
        seconds = time.monotonic() - began
        return Outcome(wrong, seconds, line.done, keeper.starts, keeper.exits, len(judge.happenings))


async def _perform(game: Round, role: Role) -> None:
    await game.pause(0, 2)
    await game.create(role)
    if role.then is not None:
        try:
            await role.then(game, role.name)
        except WireError as error:
            if error.status != 404:  # what was to be disturbed has ended meanwhile
                raise


async def _watch_end(game: Round) -> list[str]:
    """Wait until every job is where it belongs and nothing moves; what is not by the end of the time."""
    deadline = time.monotonic() + ROUND_SECONDS
    await asyncio.sleep(2.5)
    while wrong := _unsettled(game.judge):
        if time.monotonic() > deadline:
            return wrong
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)  # whatever comes after the end would be wrong
    return _unsettled(game.judge)


def _unsettled(judge: Judge) -> list[str]:
    wrong = [f"{name} is still alive" for name in judge.restless()]
    known = {h.name for h in judge.happenings if h.kind == "resource"}
    for role in ROLES:
        if role.name not in known:
            wrong.append(f"{role.name} was not created")
        elif not role.phase:
            if role.name in judge.now["resource"]:
                wrong.append(f"{role.name} is still there, {judge.phase(role.name)}")
        elif judge.phase(role.name) != role.phase:
            wrong.append(f"{role.name} is {judge.phase(role.name) or 'gone'}, not {role.phase}")
        elif judge.reason(role.name) != role.reason:
            wrong.append(f"{role.name} is {role.phase} for {judge.reason(role.name)}, not {role.reason}")
    owners = {h.uid for h in judge.now["resource"].values()}
    orphans = [
        h.name for kind in ("job", "pod") for h in judge.now[kind].values() if h.owner[0] not in owners
    ]
    return wrong + [f"{name} is an orphan" for name in orphans]


def _surplus(judge: Judge) -> list[str]:
    """Steps that were run more often than what happened to their job asks for."""
    return [
        f"{role.name} had {count} pods of {step}"
        for role in ROLES
        for step, count in judge.pods_of(role.name).items()
        if count > 1 + role.more_pods
    ]
