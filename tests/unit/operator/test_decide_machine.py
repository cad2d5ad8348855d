"""Whatever the world does: a random walk through it, with what must always hold checked at every stage."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lora_api.exits import PERMANENT
from lora_api.reasons import Reason
from lora_api.stages import StageName, encode_result
from lora_api.status import JobStatus, Phase
from lora_operator.decide import (
    Decision,
    DeleteChildJob,
    DeleteResource,
    StartAnnotation,
    StartTraining,
    decide,
)
from lora_operator.names import child_name
from lora_operator.snapshot import Child, Pod, Snapshot
from tests.support.builders import CAPTIONED, NOW, PROFILE, REUSED, TRAINED, failed, seconds, snapshot

UID = snapshot().uid
CODES = [1, 64, 65, 66, 69, 70, 75, 77, 78, 137]


class World(RuleBasedStateMachine):
    """A cluster with one resource in it. Rules are what people, pods and controllers do."""

    @initialize(
        approval=st.booleans(), start_deadline=st.booleans(), active_deadline=st.booleans(), llm=st.booleans()
    )
    def create(self, approval: bool, start_deadline: bool, active_deadline: bool, llm: bool) -> None:
        policy = {}
        if start_deadline:
            policy["startDeadlineSeconds"] = 300
        if active_deadline:
            policy["activeDeadlineSeconds"] = 3000
        annotation = {"mode": "LLM" if llm else "Template", "approval": "Required" if approval else "None"}
        self.now = NOW
        self.jobs: dict[str, Child] = {}
        self.orphans: dict[StageName, Pod] = {}
        self.status = JobStatus()
        self.spec = snapshot(spec={"annotation": annotation, "runPolicy": policy}).spec
        self.profile_there = True
        self.decision: Decision | None = None
        self.verified = False
        self.before: tuple[Child, ...] = ()
        self.deleting = False

    def view(self, stale: bool = False) -> Snapshot:
        children = self.before if stale else tuple(self.jobs.values())
        return snapshot(
            spec=None,
            status=self.status,
            children=children,
            orphaned_pods=dict.fromkeys(self.orphans, "orphan"),
            deleting=self.deleting,
            profile=PROFILE if self.profile_there else None,
        )

    def decide(self, stale: bool, killed: bool = False) -> None:
        """Once around; or killed half-way, between what is done and what is written."""
        assert self.spec is not None
        view = replace(self.view(stale), spec=self.spec)
        decision = decide(view, self.now)
        ends = decision.status.phase.terminal
        for action in () if killed and ends else decision.actions:
            match action:
                case StartAnnotation() | StartTraining():
                    stage = StageName.ANNOTATE if isinstance(action, StartAnnotation) else StageName.TRAIN
                    name = child_name("statue", UID, stage, action.attempt)
                    assert not decision.status.phase.terminal, "no child after a terminal phase"
                    assert not self.deleting, "no child of a resource that is being deleted"
                    if name not in self.jobs:  # the API server refuses a second one
                        self.jobs[name] = Child(name, f"uid-{name}", stage, action.attempt, self.now)
                case DeleteChildJob(name):
                    if name in self.jobs:
                        self.jobs[name] = replace(self.jobs[name], deleting=True)
                        self.sweep(name)
                case DeleteResource():
                    raise AssertionError("no time to live was asked for")
        if self.status.phase.terminal and not view.retry_requested:
            assert decision.status == self.status, "terminal phases latch"
        if ends or not killed:
            self.status = decision.status
        self.decision, self.decided_at = decision, self.now
        self.before = tuple(self.jobs.values())
        if ends and not (stale or killed) and decision.requeue_at is None:
            assert all(self.jobs[name].deleting for name in self.active()), "what has ended is stopped"

    def sweep(self, name: str) -> None:
        """A Job that is deleted in the foreground is gone with its last live pod."""
        job = self.jobs[name]
        if job.deleting and not any(pod.live for pod in job.pods):
            del self.jobs[name]

    @rule(stale=st.booleans())
    def reconcile(self, stale: bool) -> None:
        self.decide(stale)

    @rule(stale=st.booleans())
    def the_operator_is_killed(self, stale: bool) -> None:
        self.decide(stale, killed=True)

    @rule(by=st.sampled_from([1, 20, 400, 4000]))
    def time_passes(self, by: int) -> None:
        self.now += seconds(by)

    def active(self) -> list[str]:
        return [name for name, job in self.jobs.items() if not job.ended]

    def live(self) -> list[str]:
        return [name for name in self.active() if any(pod.live for pod in self.jobs[name].pods)]

    @precondition(lambda self: self.active())
    @rule(data=st.data())
    def a_pod_starts(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.active()))
        job = self.jobs[name]
        if job.deleting or any(pod.live for pod in job.pods):
            return
        number = len(job.pods) + 1
        pod = Pod(f"{name}-{number}", f"{name}-{number}", "Running", started_at=self.now)
        self.jobs[name] = replace(job, pods=(*job.pods, pod))

    def end_pod(self, name: str, **fields: object) -> None:
        job = self.jobs[name]
        ended = replace(job.pods[-1], finished_at=self.now, **fields)  # type: ignore[arg-type]
        job = replace(job, pods=(*job.pods[:-1], ended))
        if ended.phase == "Succeeded":
            job = replace(job, complete=True)
        elif ended.exit_code in PERMANENT:
            job = replace(job, failed="PodFailurePolicy")
        elif ended.exit_code != 75 and not ended.disrupted:
            charged = [p for p in job.pods if p.exit_code != 75 and not p.disrupted]
            if len(charged) > 2:
                job = replace(job, failed="BackoffLimitExceeded")
        self.jobs[name] = job
        self.sweep(name)

    @precondition(lambda self: self.live())
    @rule(data=st.data(), reused=st.booleans())
    def a_pod_succeeds(self, data: st.DataObject, reused: bool) -> None:
        name = data.draw(st.sampled_from(self.live()))
        if self.jobs[name].stage == StageName.ANNOTATE:
            result = REUSED if reused else CAPTIONED
            self.verified = self.verified or reused
        else:
            result = TRAINED
            self.verified = True
        self.end_pod(name, phase="Succeeded", exit_code=0, message=encode_result(result).decode())

    @precondition(lambda self: self.live())
    @rule(data=st.data(), code=st.sampled_from(CODES), speaks=st.booleans())
    def a_pod_fails(self, data: st.DataObject, code: int, speaks: bool) -> None:
        name = data.draw(st.sampled_from(self.live()))
        message = encode_result(failed(Reason.STORE_UNAVAILABLE)).decode() if speaks else "Killed"
        self.end_pod(name, phase="Failed", exit_code=code, message=message, oom_killed=code == 137)

    @precondition(lambda self: self.live())
    @rule(data=st.data(), code=st.sampled_from([0, *CODES]), speaks=st.booleans())
    def a_stage_ends_in_a_pod_that_a_sidecar_keeps(
        self, data: st.DataObject, code: int, speaks: bool
    ) -> None:
        name = data.draw(st.sampled_from(self.live()))
        job = self.jobs[name]
        if job.pods[-1].exit_code is not None:
            return
        result = CAPTIONED if job.stage == StageName.ANNOTATE else TRAINED
        words = encode_result(result if code == 0 else failed(Reason.STORE_UNAVAILABLE)).decode()
        self.verified = self.verified or (code == 0 and speaks and job.stage == StageName.TRAIN)
        ended = replace(
            job.pods[-1], exit_code=code, message=words if speaks else "cut", finished_at=self.now
        )
        self.jobs[name] = replace(job, pods=(*job.pods[:-1], ended))

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def a_pod_is_preempted(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.live()))
        self.end_pod(name, phase="Failed", exit_code=143, disrupted="PreemptionByScheduler")

    @precondition(lambda self: any(job.ended for job in self.jobs.values()))
    @rule(data=st.data(), pods_only=st.booleans())
    def old_children_are_cleaned_up(self, data: st.DataObject, pods_only: bool) -> None:
        name = data.draw(st.sampled_from([n for n, job in self.jobs.items() if job.ended]))
        if pods_only:
            self.jobs[name] = replace(self.jobs[name], pods=())
        else:
            del self.jobs[name]

    @precondition(lambda self: self.active())
    @rule(data=st.data())
    def a_person_deletes_a_job(self, data: st.DataObject) -> None:
        """In the background: its pod outlives it for a while."""
        job = self.jobs.pop(data.draw(st.sampled_from(self.active())))
        for pod in job.pods:
            if pod.live:
                self.orphans[job.stage] = pod

    @precondition(lambda self: self.orphans)
    @rule()
    def orphans_end(self) -> None:
        self.orphans.clear()

    @rule(suspend=st.booleans())
    def a_person_suspends_or_resumes(self, suspend: bool) -> None:
        assert self.spec is not None
        policy = self.spec.run_policy.model_copy(update={"suspend": suspend})
        self.spec = self.spec.model_copy(update={"run_policy": policy})

    @rule()
    def a_person_retries(self) -> None:
        assert self.spec is not None
        policy = self.spec.run_policy.model_copy(update={"retry": self.spec.run_policy.retry + 1})
        self.spec = self.spec.model_copy(update={"run_policy": policy})

    @rule(choice=st.integers(0, 9))
    def a_person_deletes_it(self, choice: int) -> None:
        self.deleting = self.deleting or choice == 0

    @rule()
    def a_person_approves(self) -> None:
        assert self.spec is not None
        annotation = self.spec.annotation.model_copy(update={"approved_captions": "f" * 64})
        self.spec = self.spec.model_copy(update={"annotation": annotation})

    @rule(there=st.booleans())
    def the_profile_goes_or_comes(self, there: bool) -> None:
        self.profile_there = there

    @invariant()
    def never_two_live_jobs_of_one_stage(self) -> None:
        for stage in StageName:
            assert len([n for n in self.active() if self.jobs[n].stage == stage]) <= 1

    @invariant()
    def never_two_live_pods_of_one_stage(self) -> None:
        for stage in StageName:
            pods = [
                p for n in self.active() if self.jobs[n].stage == stage for p in self.jobs[n].pods if p.live
            ]
            assert len(pods) + (stage in self.orphans) <= 1

    @invariant()
    def success_only_with_a_verified_manifest(self) -> None:
        if self.status.phase == Phase.SUCCEEDED:
            assert self.verified
            assert self.status.adapter is not None

    @invariant()
    def no_state_that_is_not_an_end_is_left_without_a_next_look(self) -> None:
        decision = self.decision
        if decision is not None and not decision.status.phase.terminal:
            assert decision.requeue_at is not None
            assert decision.requeue_at <= self.decided_at + seconds(300)


World.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestWorld = World.TestCase
