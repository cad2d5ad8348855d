"""What GitOps controllers make of a job, by the shipped rules themselves, on statuses that `decide` wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cel
import lupa
import pytest
import yaml

from lora_api.reasons import Reason
from lora_api.stages import StageName
from lora_api.status import JobStatus, Phase, Progress
from lora_operator.decide import decide
from lora_operator.decide.admission import PROFILE_GRACE
from lora_operator.snapshot import Snapshot
from tests.support.builders import CAPTIONED, NOW, REUSED, TRAINED, child, failed, pod, snapshot, training

GITOPS = Path(__file__).parents[3] / "examples" / "gitops"
ANNOTATE, TRAIN = StageName.ANNOTATE, StageName.TRAIN
HEALTH = "resource.customizations.health.lora-training.io_LoraTrainingJob"


def decided(case: Snapshot) -> JobStatus:
    return decide(case, NOW).status


def suspended(case: Snapshot) -> Snapshot:
    assert case.spec is not None
    policy = case.spec.run_policy.model_copy(update={"suspend": True})
    return replace(case, spec=case.spec.model_copy(update={"run_policy": policy}))


CAPTIONS = child(ANNOTATE, pod("Succeeded", CAPTIONED), complete=True)
REVIEW = {"annotation": {"approval": "Required"}}
RUNNING = snapshot(
    status=training(),
    children=(child(TRAIN, pod()),),
    progress=Progress(step=3, total_steps=5, display="3/5"),
)
DONE = child(TRAIN, pod("Succeeded", TRAINED), complete=True)
BROKEN = child(
    TRAIN,
    pod("Failed", failed(Reason.DIVERGED, "the loss is not finite"), exit_code=65),
    failed="PodFailurePolicy",
)
WITHOUT_PROFILE = snapshot(profile=None)
UNACCEPTED = snapshot(profile=None, status=JobStatus(start_time=NOW - PROFILE_GRACE))

CASES: list[tuple[str, JobStatus, Phase, str, str]] = [
    ("annotating", decided(snapshot()), Phase.ANNOTATING, "Progressing", "InProgress"),
    (
        "awaiting approval",
        decided(snapshot(spec=REVIEW, children=(CAPTIONS,))),
        Phase.AWAITING_APPROVAL,
        "Progressing",
        "InProgress",
    ),
    ("queued", decided(snapshot(children=(CAPTIONS,))), Phase.QUEUED, "Progressing", "InProgress"),
    ("training", decided(RUNNING), Phase.TRAINING, "Progressing", "InProgress"),
    ("suspended", decided(suspended(RUNNING)), Phase.SUSPENDED, "Suspended", "Current"),
    (
        "succeeded",
        decided(snapshot(status=training(), children=(DONE,))),
        Phase.SUCCEEDED,
        "Healthy",
        "Current",
    ),
    (
        "succeeded, then suspended",
        decided(suspended(snapshot(status=training(), children=(DONE,)))),
        Phase.SUCCEEDED,
        "Healthy",
        "Current",
    ),
    (
        "reused",
        decided(snapshot(children=(child(ANNOTATE, pod("Succeeded", REUSED), complete=True),))),
        Phase.SUCCEEDED,
        "Healthy",
        "Current",
    ),
    ("deleted", decided(replace(RUNNING, deleting=True)), Phase.TERMINATING, "Progressing", "InProgress"),
    ("failed", decided(snapshot(status=training(), children=(BROKEN,))), Phase.FAILED, "Degraded", "Failed"),
    ("without its profile yet", decided(WITHOUT_PROFILE), Phase.PENDING, "Progressing", "InProgress"),
    ("not accepted", decided(UNACCEPTED), Phase.FAILED, "Degraded", "Failed"),
]
BY_NAME = {name: (status, phase, argo, flux) for name, status, phase, argo, flux in CASES}


def resource(status: JobStatus | None, generation: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = {"metadata": {"name": "statue", "generation": generation}, "spec": {}}
    return found | ({} if status is None else {"status": status.to_wire()})


@pytest.fixture(scope="module")
def argo_cd() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Argo CD runs the script with the resource as `obj` and no library that reaches outside."""
    script = yaml.safe_load((GITOPS / "argo-cd" / "argocd-cm.yaml").read_text())["data"][HEALTH]

    def health(obj: dict[str, Any]) -> dict[str, Any]:
        lua = lupa.LuaRuntime(register_eval=False)
        run = lua.eval(
            "function(script, obj) local f = assert(load(script, 'health', 't', {obj = obj, ipairs = ipairs})) return f() end"
        )
        return dict(run(script, lua.table_from(obj, recursive=True)))

    return health


@pytest.fixture(scope="module")
def flux() -> Callable[[dict[str, Any]], str]:
    """In Flux's order (fluxcd/pkg, runtime/cel, StatusEvaluator.Evaluate), without its own look at the generation."""
    kustomization = yaml.safe_load((GITOPS / "flux" / "jobs.yaml").read_text())
    (rules,) = kustomization["spec"]["healthCheckExprs"]

    def health(obj: dict[str, Any]) -> str:
        for rule, verdict in (("inProgress", "InProgress"), ("failed", "Failed"), ("current", "Current")):
            if cel.evaluate(rules[rule], obj):
                return verdict
        return "InProgress"

    return health


def test_the_table_has_every_phase_that_a_status_can_show() -> None:
    assert {case[2] for case in CASES} == set(Phase)


@pytest.mark.parametrize("name", BY_NAME)
def test_each_phase(argo_cd: Any, flux: Any, name: str) -> None:
    status, phase, argo_word, flux_word = BY_NAME[name]
    assert status.phase == phase
    assert argo_cd(resource(status))["status"] == argo_word
    assert flux(resource(status)) == flux_word


@pytest.mark.parametrize("name", BY_NAME)
def test_a_status_of_an_older_generation_says_nothing_of_the_newer(
    argo_cd: Any, flux: Any, name: str
) -> None:
    stale = resource(BY_NAME[name][0], generation=2)
    assert argo_cd(stale)["status"] == "Progressing"
    assert flux(stale) == "InProgress"


def test_a_job_that_no_operator_has_seen_is_on_its_way(argo_cd: Any, flux: Any) -> None:
    """(Without a status at all Flux cannot evaluate the expressions, and waits.)"""
    assert argo_cd(resource(None))["status"] == "Progressing"
    assert argo_cd(resource(JobStatus()))["status"] == "Progressing"
    assert flux(resource(JobStatus())) == "InProgress"


def test_argo_cd_shows_how_far_a_job_is_and_why_it_failed(argo_cd: Any) -> None:
    assert argo_cd(resource(BY_NAME["training"][0]))["message"] == "Training 3/5"
    assert argo_cd(resource(BY_NAME["failed"][0]))["message"].startswith("Diverged: the loss is not finite")
