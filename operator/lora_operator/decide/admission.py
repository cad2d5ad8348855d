"""Policies that check a job's spec and status, and whether its profile allows the job."""

from __future__ import annotations

from datetime import timedelta

from lora_api.job import AnnotationMode, JobSpec, Masks
from lora_api.profile import Profile
from lora_api.reasons import Reason
from lora_api.status import ConditionType

from ..quantities import parse_quantity
from .status_draft import PROFILE_REASONS, Problem, StatusDraft

PROFILE_GRACE = timedelta(minutes=2)
"""Time for which a new job waits for its profile. The kubelet takes up to about as long to update a mounted ConfigMap."""


def validate_resource(draft: StatusDraft) -> bool:
    """Fail a resource whose spec or status cannot be read, with the fields that are wrong."""
    snapshot = draft.snapshot
    draft.write(observed_generation=snapshot.generation)
    if snapshot.status_error:
        draft.set_condition(ConditionType.ACCEPTED, "False", Reason.STATUS_INVALID, snapshot.status_error)
        draft.fail(
            Reason.STATUS_INVALID,
            f"the stored status is not valid ({snapshot.status_error}): create a new object",
        )
        return True
    if snapshot.spec is None:
        draft.set_condition(ConditionType.ACCEPTED, "False", Reason.SPEC_INVALID, snapshot.spec_error)
        draft.fail(Reason.SPEC_INVALID, snapshot.spec_error)
        return True
    if draft.status.start_time is None and not draft.spec.run_policy.suspend:
        draft.write(start_time=draft.now)
    if draft.status.effective is None or snapshot.status.observed_generation != snapshot.generation:
        write_effective(draft)
    return False


def write_effective(draft: StatusDraft) -> None:
    """Write the spec with every default; also with all values of a recipe, once the images are captioned."""
    captions = draft.status.captions
    effective = draft.spec.effective(captions.total if captions and captions.sha256 else None)
    if draft.status.effective != effective:
        draft.write(effective=effective)


def validate_profile(draft: StatusDraft) -> bool:
    """Fail a job whose profile does not exist or does not allow it.

    A new job waits for `PROFILE_GRACE` first, because its profile may have been applied together with it. A job
    that was accepted before is not failed when its profile is changed or removed: a stage that runs continues, and
    the next one waits until the profile allows it again.
    """
    problem = find_problem(draft.spec, draft.snapshot.namespace, draft.snapshot.profile)
    accepted = draft.status.condition(ConditionType.ACCEPTED)
    if problem is None:
        draft.set_condition(ConditionType.ACCEPTED, "True", Reason.VALID)
        return False
    if accepted is not None and accepted.status == "True":
        draft.problem = problem
        return False
    start = draft.status.start_time  # None while the job is suspended
    if problem.reason in PROFILE_REASONS and (start is None or draft.now < start + PROFILE_GRACE):
        draft.problem = problem
        draft.set_condition(ConditionType.ACCEPTED, "Unknown", problem.reason, problem.message)
        if start is not None:
            draft.requeue_at(start + PROFILE_GRACE)
            draft.requeue_with_backoff(start)
        return False
    draft.set_condition(ConditionType.ACCEPTED, "False", problem.reason, problem.message)
    draft.fail(problem.reason, problem.message)
    return True


def find_problem(spec: JobSpec, namespace: str, profile: Profile | None) -> Problem | None:
    """Find the reason why a job cannot be accepted under a profile; None when it can."""
    if profile is None or not profile.allows(namespace):
        return Problem(
            Reason.PROFILE_NOT_FOUND,
            f"spec.profile: no profile {spec.profile!r} is defined for namespace {namespace!r}; "
            "use another one, or ask the administrator for it",
        )
    if spec.base_model not in profile.models:
        known = ", ".join(sorted(profile.models))
        return Problem(
            Reason.MODEL_NOT_ALLOWED,
            f"spec.baseModel: profile {spec.profile!r} has no model {spec.base_model!r}; it has: {known}",
        )
    if problem := _find_excess(spec, profile):
        return problem
    if spec.training.validation.measures_scores and profile.scoring is None:
        return Problem(
            Reason.MODEL_NOT_ALLOWED,
            f"spec.training.validation: profile {spec.profile!r} has no scoring models; "
            "publish by loss or the last step, without scores",
        )
    if spec.annotation.masks is Masks.MODEL and profile.segmentation is None:
        return Problem(
            Reason.MODEL_NOT_ALLOWED,
            f"spec.annotation.masks: profile {spec.profile!r} has no segmentation model; use GrabCut or Own",
        )
    if spec.annotation.mode != AnnotationMode.LLM:
        return None
    if profile.llm is None:
        return Problem(
            Reason.MODEL_NOT_ALLOWED,
            f"spec.annotation.mode: profile {spec.profile!r} has no LLM; use Existing or Template",
        )
    model = profile.llm.choose(spec.annotation.model)
    if model is None:
        known = ", ".join(profile.llm.models)
        return Problem(
            Reason.MODEL_NOT_ALLOWED,
            f"spec.annotation.model: profile {spec.profile!r} does not allow "
            f"{spec.annotation.model!r}; it allows: {known}",
        )
    limited = spec.annotation.limits.max_cost_usd is not None
    if limited and profile.llm.provider != "transformers" and model not in profile.llm.prices:
        return Problem(
            Reason.CONFIGURATION_INVALID,
            f"spec.annotation.limits.maxCostUSD: profile {spec.profile!r} has no price for {model!r}, so the "
            "limit cannot be enforced; add llm.prices to the profile or remove the limit",
        )
    return None


def _find_excess(spec: JobSpec, profile: Profile) -> Problem | None:
    """Find a limit of a stage's pods that is below its request, or above the profile's maximum."""
    for stage in ("annotate", "train"):
        requested, pods = getattr(spec.resources, stage), getattr(profile.pods, stage)
        if requested.cpu_limit and parse_quantity(requested.cpu_limit) < parse_quantity(requested.cpu):
            return Problem(
                Reason.CONFIGURATION_INVALID,
                f"spec.resources.{stage}.cpuLimit: {requested.cpu_limit} is below the request, "
                f"spec.resources.{stage}.cpu: {requested.cpu}",
            )
        for field, value, maximum in (
            ("cpuLimit", requested.cpu_limit, pods.max_cpu_limit),
            ("ephemeralStorage", requested.ephemeral_storage, pods.max_ephemeral_storage),
        ):
            if value and maximum and parse_quantity(value) > parse_quantity(maximum):
                return Problem(
                    Reason.CONFIGURATION_INVALID,
                    f"spec.resources.{stage}.{field}: {value} is above the maximum of profile "
                    f"{spec.profile!r}, {maximum}",
                )
    return None
