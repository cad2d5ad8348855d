"""A round of chaos testing: a job for each scenario, and an operator that is killed and has a faulty connection.

It is one module because a scenario consists of a job, the ends of its pods and a user's actions. The table of scenarios
must be read together with the code that runs them.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kubernetes import client

from lora_api import API_VERSION, GROUP, KIND, PLURAL, VERSION
from lora_api.reasons import Reason
from lora_api.stages import StageName, TrainingResult
from lora_operator import names
from tests.support.builders import ADAPTER, CAPTIONED, KEYS, REUSED, TRAINED, failed, wire_spec
from tests.support.cluster.chaos_checks import Recorder
from tests.support.cluster.kubelet import End, FakeKubelet, Stuck, ended
from tests.support.cluster.proxy import Faults, FaultyProxy
from tests.support.cluster.wire import Object, Wire, WireError

ANNOTATE, TRAIN = StageName.ANNOTATE, StageName.TRAIN
ROUND_SECONDS = 600.0
"""Time limit of a round. It is far more than a round takes, because the machine may be busy."""
KILLS = 2
"""How often the operator is killed in a round."""

Ends = dict[tuple[StageName, int], End | Stuck | None]


@dataclass(frozen=True)
class Scenario:
    """A job, what happens to it, and how it must end."""

    name: str
    reason: str = Reason.TRAINED
    phase: str = "Succeeded"
    """The phase at the end; empty when the resource must be deleted by then."""
    spec: dict[str, Any] = field(default_factory=dict)
    ends: Ends = field(default_factory=dict)
    """How a stage's n-th pod ends (from 1). All other pods succeed."""
    action: Callable[[Round, str], Awaitable[None]] | None = None
    """What a user does meanwhile."""
    more_pods: int = 0
    """How many pods each stage may have in addition to the first."""


@dataclass
class Round:
    """A round that is running, and what its users can do."""

    seed: str
    namespace: str
    wire: Wire
    recorder: Recorder

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.seed}/round")
        self._resources = f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}"

    async def create(self, scenario: Scenario) -> None:
        spec = wire_spec(**{"annotation": {"mode": "Template"}, **scenario.spec})
        metadata = {"name": scenario.name, "namespace": self.namespace}
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
        await self.wire.call("POST", self._resources, body)

    async def change(self, name: str, **spec: Any) -> None:
        await self.wire.call("PATCH", f"{self._resources}/{name}", {"spec": spec})

    async def set_finalizers(self, name: str, finalizers: list[str] | None) -> None:
        body = {"metadata": {"finalizers": finalizers}}
        await self.wire.call("PATCH", f"{self._resources}/{name}", body)

    async def delete(self, name: str) -> None:
        await self.wire.call("DELETE", f"{self._resources}/{name}")

    async def create_quota(self, name: str, hard: dict[str, str]) -> None:
        """Create a quota of the namespace."""
        body = {"metadata": {"name": name}, "spec": {"hard": hard}}
        await self.wire.call("POST", f"/api/v1/namespaces/{self.namespace}/resourcequotas", body)

    async def delete_quota(self, name: str) -> None:
        """Delete a quota."""
        await self.wire.call("DELETE", f"/api/v1/namespaces/{self.namespace}/resourcequotas/{name}")

    async def sleep(self, least: float, most: float) -> None:
        await asyncio.sleep(self.random.uniform(least, most))

    async def wait_for_phase(self, phase: str, name: str) -> None:
        while self.recorder.phase(name) != phase:
            await asyncio.sleep(0.05)

    async def wait_for_child(self, kind: str, name: str) -> Object:
        """Wait until a job has an active child of a kind, and return one."""
        while True:
            resource = self.recorder.current["resource"].get(name)
            children = [
                event
                for event in self.recorder.current[kind].values()
                if resource and event.owner[0] == resource.uid
            ]
            if alive := [child.body for child in children if child.active]:
                return self.random.choice(alive)
            await asyncio.sleep(0.05)


async def approve(run: Round, name: str) -> None:
    await run.wait_for_phase("AwaitingApproval", name)
    captions = run.recorder.current["resource"][name].body["status"]["captions"]
    await run.sleep(0, 1)
    await run.change(name, annotation={"approvedCaptions": f"sha256:{captions['sha256']}"})


async def suspend_and_resume(run: Round, name: str) -> None:
    await run.sleep(0, 5)
    await run.change(name, runPolicy={"suspend": True})
    await run.sleep(0, 3)
    await run.change(name, runPolicy={"suspend": False})


async def delete_child_job(run: Round, name: str) -> None:
    await run.sleep(0, 4)
    job = await run.wait_for_child("job", name)
    policy = run.random.choice(["Background", "Foreground"])
    path = f"/apis/batch/v1/namespaces/{run.namespace}/jobs/{job['metadata']['name']}"
    await run.wire.call("DELETE", path, propagationPolicy=policy)


async def orphan_child_job(run: Round, name: str) -> None:
    """Delete a child Job and leave its pods, as `kubectl delete job --cascade=orphan` does."""
    await run.sleep(0, 4)
    job = await run.wait_for_child("job", name)
    path = f"/apis/batch/v1/namespaces/{run.namespace}/jobs/{job['metadata']['name']}"
    await run.wire.call("DELETE", path, propagationPolicy="Orphan")


async def delete_pod(run: Round, name: str) -> None:
    await run.sleep(0, 4)
    pod = await run.wait_for_child("pod", name)
    force = {"gracePeriodSeconds": 0} if run.random.random() < 0.3 else {}
    path = f"/api/v1/namespaces/{run.namespace}/pods/{pod['metadata']['name']}"
    await run.wire.call("DELETE", path, **force)


async def delete_resource(run: Round, name: str) -> None:
    await run.sleep(0, 6)
    await run.delete(name)


async def retry(run: Round, name: str) -> None:
    await run.wait_for_phase("Failed", name)
    await run.sleep(0, 1)
    await run.change(name, runPolicy={"retry": 1})


async def delete_with_finalizer(run: Round, name: str) -> None:
    """Delete a job that has another controller's finalizer, and remove the finalizer when its pods are gone."""
    await run.sleep(0, 3)
    await run.set_finalizers(name, ["example.com/hold"])
    await run.delete(name)
    await run.wait_for_phase("Terminating", name)
    await run.sleep(0, 3)
    await run.set_finalizers(name, None)


async def set_quotas(run: Round, name: str) -> None:
    """Set quotas for all jobs of the namespace, one after the other, each for a few seconds."""
    hard = [{"pods": "0"}, {"count/jobs.batch": "0"}, {"limits.cpu": "1"}, {"pods": "3"}]
    run.random.shuffle(hard)
    for number, limit in enumerate(hard):
        await run.sleep(0, 2)
        await run.create_quota(f"quota-{number}", limit)
        await run.sleep(0.5, 3)
        await run.delete_quota(f"quota-{number}")


def failed_with(reason: Reason, code: int) -> End:
    return ended(failed(reason), code)


def evicted(reason: str, message: str = "") -> End:
    return End(
        143, "", "Error", disrupted=reason, pod_reason="Evicted" if message else "", pod_message=message
    )


def key_rotated(step: int) -> End:
    result = failed(Reason.CREDENTIALS_REFUSED)
    return ended(result.model_copy(update={"training": TrainingResult(final_step=step)}), 77)


def with_sidecar(name: str, exit_code: int | None) -> End:
    """A successful end of a pod that has another container."""
    return End(0, "", sidecar=name, sidecar_exit=exit_code)


NO_RESULT = End(0, "no result")
FAILED = {"phase": "Failed"}
SCENARIOS = (
    Scenario("plain"),
    Scenario("by-llm", spec={"annotation": {"mode": "LLM"}}),
    Scenario("to-approve", spec={"annotation": {"mode": "Template", "approval": "Required"}}, action=approve),
    Scenario("reused", Reason.REUSED),
    Scenario("suspended", action=suspend_and_resume, more_pods=1),
    Scenario("suspended-too", spec={"annotation": {"mode": "LLM"}}, action=suspend_and_resume, more_pods=1),
    Scenario("job-deleted", action=delete_child_job, more_pods=1),
    Scenario("job-deleted-too", action=delete_child_job, more_pods=1),
    Scenario("job-orphaned", action=orphan_child_job, more_pods=1),
    Scenario("pod-deleted", action=delete_pod, more_pods=1),
    Scenario("deleted", "", "", action=delete_resource),
    Scenario("limited", action=set_quotas),
    Scenario("short-lived", "", "", spec={"runPolicy": {"ttlSecondsAfterFinished": 1}}),
    Scenario("store-away", ends={(TRAIN, 1): failed_with(Reason.STORE_UNAVAILABLE, 69)}, more_pods=1),
    Scenario("interrupted", ends={(ANNOTATE, 1): End(75, "", "Error")}, more_pods=1),
    Scenario(
        "evicted",
        spec={"runPolicy": {"backoffLimit": 0}},
        ends={(TRAIN, 1): evicted("EvictionByEvictionAPI")},
        more_pods=1,
    ),
    Scenario("result-lost", ends={(TRAIN, 1): NO_RESULT}, more_pods=1),
    Scenario("sidecar-first", ends={(TRAIN, 1): with_sidecar("a-proxy", None)}),
    Scenario(
        "sidecar-fails",
        ends={(ANNOTATE, 1): with_sidecar("z-proxy", 1), (TRAIN, 1): with_sidecar("a-proxy", 1)},
        more_pods=1,
    ),
    Scenario(
        "result-always-lost",
        Reason.RESULT_LOST,
        **FAILED,
        spec={"runPolicy": {"backoffLimit": 1}},
        ends={(TRAIN, 1): NO_RESULT, (TRAIN, 2): NO_RESULT},
        more_pods=1,
    ),
    Scenario(
        "key-rotated",
        spec={"runPolicy": {"backoffLimit": 0}},
        ends={(TRAIN, 1): key_rotated(40), (TRAIN, 2): key_rotated(80)},
        more_pods=2,
    ),
    Scenario(
        "disk-full",
        Reason.DISRUPTION_LIMIT_EXCEEDED,
        **FAILED,
        spec={"runPolicy": {"disruptionLimit": 2}},
        ends={
            (TRAIN, number): evicted("TerminationByKubelet", "low on ephemeral-storage")
            for number in range(1, 9)
        },
        more_pods=7,
    ),
    Scenario(
        "retried",
        ends={(ANNOTATE, 1): failed_with(Reason.DATASET_INVALID, 65)},
        action=retry,
        more_pods=1,
    ),
    Scenario("held-and-deleted", "", "", ends={(TRAIN, 1): None}, action=delete_with_finalizer),
    Scenario(
        "out-of-memory",
        Reason.OUT_OF_MEMORY,
        **FAILED,
        spec={"runPolicy": {"backoffLimit": 0}},
        ends={(TRAIN, 1): End(137, "", "OOMKilled")},
    ),
    Scenario(
        "bad-images",
        Reason.DATASET_INVALID,
        **FAILED,
        ends={(ANNOTATE, 1): failed_with(Reason.DATASET_INVALID, 65)},
    ),
    Scenario(
        "not-accepted",
        Reason.CONFIGURATION_INVALID,
        **FAILED,
        spec={"resources": {"train": {"cpu": "2", "cpuLimit": "1"}}},
    ),
    Scenario(
        "endless",
        Reason.DEADLINE_EXCEEDED,
        **FAILED,
        spec={"runPolicy": {"activeDeadlineSeconds": 6}},
        ends={(TRAIN, 1): None},
    ),
    Scenario(
        "no-node",
        Reason.START_DEADLINE_EXCEEDED,
        **FAILED,
        spec={"runPolicy": {"startDeadlineSeconds": 5}},
        ends={(TRAIN, 1): Stuck(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")},
    ),
)


class ScenarioKubelet(FakeKubelet):
    """Ends every pod as its job's scenario says, after a random time.

    Each pod publishes its adapter under its own name, so that `adapter_is_published` can tell them apart.
    """

    def __init__(self, api: client.ApiClient, namespace: str, seed: str) -> None:
        super().__init__(api, namespace)
        self._random = random.Random(f"{seed}/pods")
        self._scenarios = {scenario.name: scenario for scenario in SCENARIOS}
        self._behaviors: dict[str, End | Stuck | None] = {}

    def choose_behavior(self, pod: Object, stage: StageName, number: int) -> End | Stuck | None:
        uid = pod["metadata"]["uid"]
        if uid not in self._behaviors:
            self._behaviors[uid] = self._choose(pod, stage, number)
        return self._behaviors[uid]

    def _choose(self, pod: Object, stage: StageName, number: int) -> End | Stuck | None:
        scenario = self._scenarios[pod["metadata"]["annotations"][names.OWNER_NAME]]
        seconds = self._random.uniform(0.0, 1.5)
        scripted = scenario.ends.get((stage, number), ...)
        if isinstance(scripted, End) and not scripted.sidecar:
            return replace(scripted, seconds=seconds)
        if scripted is not ... and not isinstance(scripted, End):
            return scripted
        uid = pod["metadata"]["uid"]
        adapter = ADAPTER.model_copy(update={"uri": f"s3://loras/{KEYS.attempt(1)}{uid}.safetensors"})
        if stage == TRAIN:
            result = TRAINED.model_copy(update={"adapter": adapter})
        elif scenario.reason == Reason.REUSED:
            result = REUSED.model_copy(update={"adapter": adapter})
        else:
            result = CAPTIONED
        end = scripted if isinstance(scripted, End) else End()
        return replace(end, message=ended(result).message, seconds=seconds)


class OperatorSupervisor:
    """Starts the operator again whenever it ends, as a kubelet would, and kills it `KILLS` times."""

    def __init__(self, environment: dict[str, str], log: Path, rng: random.Random) -> None:
        self._environment = environment
        self._log = log
        self._random = rng
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
class RoundResult:
    """What a round measured, and the errors that it found."""

    errors: list[str]
    seconds: float
    faults: Counter[str]
    operator_starts: int
    operator_exits: list[int]
    events: int

    def __str__(self) -> str:
        faults = sum(self.faults.values())
        return (
            f"{self.seconds:.1f} s, {faults} faults, {self.operator_starts} starts of the operator "
            f"(it ended with {self.operator_exits}), {self.events} watch events, {len(self.errors)} errors"
        )


async def run_round(
    api: client.ApiClient, namespace: str, operator: Wire, folder: Path, seed: str, faults: Faults
) -> RoundResult:
    """Run one round in a namespace of its own.

    Args:
        operator: the operator's own access to the API server.
        folder: has the profiles file. The operator's log is written there, and `events.txt` if there were errors.
        seed: determines all random choices. The timing of the machine still varies.
    """
    started = time.monotonic()
    kubelet = ScenarioKubelet(api, namespace, seed)
    async with (
        Wire.of(api) as wire,
        Recorder(wire, namespace) as recorder,
        FaultyProxy(operator, seed, faults) as proxy,
    ):
        round_ = Round(seed, namespace, wire, recorder)
        environment = os.environ | {
            "KUBECONFIG": str(proxy.write_kubeconfig(folder / "proxy.kubeconfig")),
            "LORA_ANNOTATE_IMAGE": "annotate:test",
            "LORA_TRAIN_IMAGE": "train:test",
            "LORA_PROFILES": str(folder / "profiles.yaml"),
            "LORA_WATCH_NAMESPACES": namespace,
            "LORA_HOST": "127.0.0.1",
            "LORA_PORT": "0",
        }
        supervisor = OperatorSupervisor(
            environment, folder / "operator.log", random.Random(f"{seed}/operator")
        )
        tasks = [asyncio.create_task(work) for work in (kubelet.run(), supervisor.run())]
        tasks += [asyncio.create_task(_run_scenario(round_, scenario)) for scenario in SCENARIOS]
        try:
            errors = await _wait_for_end(round_)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        errors += [f"an error of the test itself: {e!r}" for e in results if isinstance(e, Exception)]
        errors += recorder.violations() + _find_excess_pods(recorder)
        if errors:
            (folder / "events.txt").write_text("\n".join(recorder.format_events()))
        seconds = time.monotonic() - started
        return RoundResult(
            errors, seconds, proxy.injected, supervisor.starts, supervisor.exits, len(recorder.events)
        )


async def _run_scenario(run: Round, scenario: Scenario) -> None:
    await run.sleep(0, 2)
    await run.create(scenario)
    if scenario.action is not None:
        try:
            await scenario.action(run, scenario.name)
        except WireError as error:
            if error.status != 404:  # the object of the action has been deleted meanwhile
                raise


async def _wait_for_end(run: Round) -> list[str]:
    """Wait until every job has ended as it must and no child is active; return the errors that remain at the time limit."""
    deadline = time.monotonic() + ROUND_SECONDS
    await asyncio.sleep(2.5)
    while errors := _find_unfinished(run.recorder):
        if time.monotonic() > deadline:
            return errors
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)  # a change after the end would be an error
    return _find_unfinished(run.recorder)


def _find_unfinished(recorder: Recorder) -> list[str]:
    errors = [f"{name} is still active" for name in recorder.active_children()]
    known = {event.name for event in recorder.events if event.kind == "resource"}
    for scenario in SCENARIOS:
        if scenario.name not in known:
            errors.append(f"{scenario.name} was not created")
        elif not scenario.phase:
            if scenario.name in recorder.current["resource"]:
                errors.append(f"{scenario.name} is still there, {recorder.phase(scenario.name)}")
        elif recorder.phase(scenario.name) != scenario.phase:
            errors.append(
                f"{scenario.name} is {recorder.phase(scenario.name) or 'gone'}, not {scenario.phase}"
            )
        elif recorder.reason(scenario.name) != scenario.reason:
            errors.append(
                f"{scenario.name} is {scenario.phase} for {recorder.reason(scenario.name)}, not {scenario.reason}"
            )
    owners = {event.uid for event in recorder.current["resource"].values()}
    orphans = [
        child.name
        for kind in ("job", "pod")
        for child in recorder.current[kind].values()
        if child.owner[0] not in owners
    ]
    return errors + [f"{name} is an orphan" for name in orphans]


def _find_excess_pods(recorder: Recorder) -> list[str]:
    """Return the stages that had more pods than their scenario explains."""
    return [
        f"{scenario.name} had {count} pods of {stage}"
        for scenario in SCENARIOS
        for stage, count in recorder.pods_of(scenario.name).items()
        if count > 1 + scenario.more_pods
    ]
