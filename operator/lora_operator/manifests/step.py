"""The file that configures a step, and the command that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_api.job import AnnotationMode, JobSpec
from lora_api.profile import Profile
from lora_api.steps import (
    PROGRESS_PORT,
    STORE_CA_FILE,
    STORE_SECRET_DIR,
    AnnotateStep,
    LLMAccess,
    StepName,
    StoreAccess,
    TrainStep,
)

from ..decide import StartAnnotation, StartTraining
from ..snapshot import Snapshot


@dataclass(frozen=True)
class Places:
    """Where a step finds things: fixed paths in a pod, a folder's in local mode."""

    config: str = "/etc/lora/step.json"
    work: str = "/work"
    cache: str = "/cache"
    store_secret: str = STORE_SECRET_DIR
    llm_secret: str = "/var/run/lora/llm"
    store_ca: str = STORE_CA_FILE
    termination_log: str = "/dev/termination-log"
    progress_host: str = "0.0.0.0"  # noqa: S104 - a pod serves its progress to the operator
    progress_port: int = PROGRESS_PORT
    claims: bool = False
    """Whether the claims that a profile names can be mounted."""


CLUSTER = Places(claims=True)


def build_step(
    snapshot: Snapshot, start: StartAnnotation | StartTraining, places: Places
) -> AnnotateStep | TrainStep:
    """What a decision to start a step means, written out for the step."""
    if isinstance(start, StartAnnotation):
        return _annotate_step(snapshot, start, places)
    _, profile = admitted(snapshot)
    return TrainStep(
        **_common(snapshot, start, places),
        captions_sha256=start.captions_sha256,
        input_hash=start.input_hash,
        cache_dir=places.cache,
        prefetched=places.claims and bool(profile.model_cache.persistent_volume_claim),
    )


def _annotate_step(snapshot: Snapshot, start: StartAnnotation, places: Places) -> AnnotateStep:
    spec, profile = admitted(snapshot)
    llm = None
    if spec.annotation.mode == AnnotationMode.LLM and profile.llm is not None:
        model = profile.llm.choose(spec.annotation.model)
        assert model is not None
        llm = LLMAccess(
            provider=profile.llm.provider,
            base_url=profile.llm.base_url,
            credentials_dir=places.llm_secret,
            model=model,
            price=profile.llm.prices.get(model),
            concurrency=profile.llm.concurrency,
        )
    return AnnotateStep(**_common(snapshot, start, places), llm=llm)


def command(step: StepName, config: str) -> list[str]:
    """The arguments for the Python interpreter; no shell ever sees them."""
    verb = "annotate" if step == StepName.ANNOTATE else "launch"
    return ["-m", "lora_trainer", verb, "--config", config]


def admitted(snapshot: Snapshot) -> tuple[JobSpec, Profile]:
    """The spec and the profile of a job that `decide` has let start."""
    assert snapshot.spec is not None
    assert snapshot.profile is not None
    return snapshot.spec, snapshot.profile


def _common(snapshot: Snapshot, start: StartAnnotation | StartTraining, places: Places) -> dict[str, Any]:
    spec, profile = admitted(snapshot)
    return {
        "namespace": snapshot.namespace,
        "name": snapshot.name,
        "uid": snapshot.uid,
        "attempt": start.attempt,
        "spec": spec,
        "base_model": profile.models[spec.base_model],
        "store": StoreAccess.of(profile.store, places.store_secret, places.store_ca),
        "work_dir": places.work,
        "termination_log": places.termination_log,
        "progress_host": places.progress_host,
        "progress_port": places.progress_port,
    }
