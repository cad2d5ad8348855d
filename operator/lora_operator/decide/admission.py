"""Can this job be worked on at all?"""

from __future__ import annotations

from lora_api.job import AnnotationMode, JobSpec
from lora_api.profile import Profile
from lora_api.reasons import Reason
from lora_api.status import ConditionType

from .story import Problem, Story


def understand(story: Story) -> bool:
    """A resource that cannot be read ends here, and says what is wrong with it."""
    snapshot = story.snapshot
    story.write(observed_generation=snapshot.generation)
    if snapshot.status_error:
        story.condition(ConditionType.ACCEPTED, "False", Reason.STATUS_INVALID, snapshot.status_error)
        story.fail(
            Reason.STATUS_INVALID,
            f"somebody changed the status so that it cannot be read ({snapshot.status_error}): create a new object",
        )
        return True
    if snapshot.spec is None:
        story.condition(ConditionType.ACCEPTED, "False", Reason.SPEC_INVALID, snapshot.spec_error)
        story.fail(Reason.SPEC_INVALID, snapshot.spec_error)
        return True
    if story.status.start_time is None:
        story.write(start_time=story.now)
    effective = snapshot.spec.to_wire()
    if story.status.effective != effective:
        story.write(effective=effective)
    return False


def accept(story: Story) -> bool:
    """The profile must exist, allow the namespace and name the models.

    A job that was accepted once is not failed when its profile goes away later: it goes on as far as
    it can, and waits where it would need the profile.
    """
    problem = find_problem(story.spec, story.snapshot.namespace, story.snapshot.profile)
    accepted = story.status.condition(ConditionType.ACCEPTED)
    if problem is None:
        story.condition(ConditionType.ACCEPTED, "True", Reason.VALID)
        return False
    if accepted is not None and accepted.status == "True":
        story.problem = problem
        return False
    story.condition(ConditionType.ACCEPTED, "False", problem.reason, problem.message)
    story.fail(problem.reason, problem.message)
    return True


def find_problem(spec: JobSpec, namespace: str, profile: Profile | None) -> Problem | None:
    """Why a job cannot be accepted under a profile; None when it can."""
    if profile is None or not profile.allows(namespace):
        return Problem(
            Reason.PROFILE_NOT_FOUND,
            f"spec.profile: no profile {spec.profile!r} is defined for namespace {namespace!r}; "
            "use another one or ask the administrator for it",
        )
    if spec.base_model not in profile.models:
        known = ", ".join(sorted(profile.models))
        return Problem(
            Reason.MODEL_NOT_ALLOWED,
            f"spec.baseModel: profile {spec.profile!r} has no model {spec.base_model!r}; it has: {known}",
        )
    if spec.annotation.mode != AnnotationMode.LLM:
        return None
    if profile.llm is None:
        return Problem(
            Reason.MODEL_NOT_ALLOWED,
            f"spec.annotation.mode: profile {spec.profile!r} has no LLM; use Existing or Template",
        )
    if profile.llm.choose(spec.annotation.model) is None:
        known = ", ".join(profile.llm.models)
        return Problem(
            Reason.MODEL_NOT_ALLOWED,
            f"spec.annotation.model: profile {spec.profile!r} does not allow "
            f"{spec.annotation.model!r}; it allows: {known}",
        )
    return None
