"""Whatever the world does: a random walk through it, with what must always hold checked at every step."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from builders import CAPTIONED, NOW, PROFILE, REUSED, TRAINED, failed, seconds, snapshot
from lora_api.exits import PERMANENT
from lora_api.reasons import Reason
from lora_api.status import JobStatus, Phase
from lora_api.steps import StepName, encode_result
from lora_operator.decide import Decision, RemoveJob, StartAnnotation, StartTraining, StopStep, decide
from lora_operator.names import child_name
from lora_operator.snapshot import Child, Pod, Snapshot

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
        self.orphans: dict[StepName, Pod] = {}
        self.status = JobStatus()
        self.spec = snapshot(spec={"annotation": annotation, "runPolicy": policy}).spec
        self.profile_there = True
        self.decision: Decision | None = None
        self.verified = False
        self.before: tuple[Child, ...] = ()
        self.event_due = False

    def view(self, stale: bool = False) -> Snapshot:
        children = self.before if stale else tuple(self.jobs.values())
        return snapshot(
            spec=None,
            status=self.status,
            children=children,
            leftovers=frozenset(self.orphans),
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
                    step = StepName.ANNOTATE if isinstance(action, StartAnnotation) else StepName.TRAIN
                    name = child_name("statue", UID, step, action.attempt)
                    assert not self.status.phase.terminal, "no child after a terminal phase"
                    if name not in self.jobs:  # the API server refuses a second one
                        self.jobs[name] = Child(name, f"uid-{name}", step, action.attempt, self.now)
                case StopStep(name):
                    if name in self.jobs:
                        self.jobs[name] = replace(self.jobs[name], deleting=True)
                        self.sweep(name)
                case RemoveJob():
                    raise AssertionError("no time to live was asked for")
        if self.status.phase.terminal:
            assert decision.status == self.status, "terminal phases latch"
        if ends or not killed:
            self.status = decision.status
        self.decision = decision
        # what a lagging view has not shown yet will come as an event, and a new process looks at everything
        self.event_due = killed or view.children != tuple(self.jobs.values())
        self.before = tuple(self.jobs.values())
        if ends and not (stale or killed):
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
        if self.jobs[name].step == StepName.ANNOTATE:
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
                self.orphans[job.step] = pod

    @precondition(lambda self: self.orphans)
    @rule()
    def orphans_end(self) -> None:
        self.orphans.clear()
        self.event_due = True

    @rule(suspend=st.booleans())
    def a_person_suspends_or_resumes(self, suspend: bool) -> None:
        assert self.spec is not None
        policy = self.spec.run_policy.model_copy(update={"suspend": suspend})
        self.spec = self.spec.model_copy(update={"run_policy": policy})

    @rule()
    def a_person_approves(self) -> None:
        assert self.spec is not None
        annotation = self.spec.annotation.model_copy(update={"approved_captions": "f" * 64})
        self.spec = self.spec.model_copy(update={"annotation": annotation})

    @rule(there=st.booleans())
    def the_profile_goes_or_comes(self, there: bool) -> None:
        self.profile_there = there

    @invariant()
    def never_two_live_jobs_of_one_step(self) -> None:
        for step in StepName:
            assert len([n for n in self.active() if self.jobs[n].step == step]) <= 1

    @invariant()
    def never_two_live_pods_of_one_step(self) -> None:
        for step in StepName:
            pods = [
                p for n in self.active() if self.jobs[n].step == step for p in self.jobs[n].pods if p.live
            ]
            assert len(pods) + (step in self.orphans) <= 1

    @invariant()
    def success_only_with_a_verified_manifest(self) -> None:
        if self.status.phase == Phase.SUCCEEDED:
            assert self.verified
            assert self.status.adapter is not None

    @invariant()
    def somebody_will_move_it_on(self) -> None:
        """After a decision: ended, or a Job, a pod, a person or a wake-up brings the next one."""
        decision = self.decision
        if decision is None or decision.status.phase.terminal:
            return
        waits_for_a_person = decision.status.phase in (Phase.SUSPENDED, Phase.AWAITING_APPROVAL)
        changed = self.event_due or self.before != tuple(self.jobs.values())
        something_runs = self.jobs or self.orphans or decision.actions
        assert decision.wake_at or something_runs or waits_for_a_person or changed


World.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestWorld = World.TestCase
