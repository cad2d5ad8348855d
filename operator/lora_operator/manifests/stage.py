"""The configuration file of a stage, and the command that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_api.job import AnnotationMode, JobSpec, Masks
from lora_api.profile import Profile
from lora_api.stages import (
    LLM_CA_FILE,
    PROGRESS_PORT,
    STORE_CA_FILE,
    STORE_SECRET_DIR,
    AnnotateConfig,
    AppliedRecipe,
    LLMAccess,
    StageName,
    StoreAccess,
    TrainConfig,
)

from ..decide import StartAnnotation, StartTraining
from ..snapshot import Snapshot


@dataclass(frozen=True)
class Places:
    """Paths and addresses that a stage uses. The defaults are those of a pod; a local run uses paths in a folder."""

    config: str = "/etc/lora/stage.json"
    work: str = "/work"
    cache: str = "/cache"
    store_secret: str = STORE_SECRET_DIR
    llm_secret: str = "/var/run/lora/llm"
    store_ca: str = STORE_CA_FILE
    llm_ca: str = LLM_CA_FILE
    termination_log: str = "/dev/termination-log"
    progress_host: str = "0.0.0.0"  # noqa: S104 - a pod serves its progress to the operator
    progress_port: int = PROGRESS_PORT
    claims: bool = False
    """Whether the persistent volume claims of a profile can be mounted."""


CLUSTER = Places(claims=True)


def build_stage_config(
    snapshot: Snapshot, start: StartAnnotation | StartTraining, places: Places
) -> AnnotateConfig | TrainConfig:
    """Build the configuration file of the stage that a decision starts."""
    if isinstance(start, StartAnnotation):
        return _build_annotate_config(snapshot, start, places)
    spec, profile = spec_and_profile(snapshot)
    return TrainConfig(
        **_common_fields(snapshot, start, places),
        **_with_recipe(spec, start.images),
        captions_sha256=start.captions_sha256,
        input_hash=start.input_hash,
        **_cache_fields(profile, places),
    )


def _cache_fields(profile: Profile, places: Places) -> dict[str, Any]:
    """Return the fields for the folder of models."""
    return {
        "cache_dir": places.cache,
        "prefetched": places.claims and bool(profile.model_cache.persistent_volume_claim),
    }


def _with_recipe(spec: JobSpec, images: int | None) -> dict[str, Any]:
    """Return the fields `spec` and `recipe` of the training stage."""
    if images is None:
        return {"spec": spec}
    completed = spec.completed(images)
    applied = AppliedRecipe(kind=completed.kind, images=images, fields=list(completed.chosen))
    return {"spec": spec.model_copy(update={"training": completed.training}), "recipe": applied}


def _build_annotate_config(snapshot: Snapshot, start: StartAnnotation, places: Places) -> AnnotateConfig:
    spec, profile = spec_and_profile(snapshot)
    llm = None
    if spec.annotation.mode == AnnotationMode.LLM and profile.llm is not None:
        model = profile.llm.choose(spec.annotation.model)
        assert model is not None
        llm = LLMAccess(
            provider=profile.llm.provider,
            base_url=profile.llm.base_url,
            credentials_dir=places.llm_secret if profile.llm.secret_name else "",
            ca_file=places.llm_ca if profile.llm.ca_config_map else "",
            proxy=profile.llm.proxy,
            timeout_seconds=profile.llm.timeout_seconds,
            retry_seconds=profile.llm.retry_seconds,
            model=model,
            price=profile.llm.prices.get(model),
            concurrency=profile.llm.concurrency,
        )
    segmentation = profile.segmentation if spec.annotation.masks is Masks.MODEL else None
    cache = _cache_fields(profile, places) if segmentation else {}
    return AnnotateConfig(
        **_common_fields(snapshot, start, places), **cache, spec=spec, llm=llm, segmentation=segmentation
    )


ALLOCATOR = {
    "MALLOC_TOP_PAD_": str(64 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
}
"""Environment of the training stage: glibc keeps freed memory for the next step instead of returning it to the
kernel, which saves a few percent of the time on a CPU. Without the last one, a step of SDXL has 36,000 page faults."""


def command(stage: StageName, config: str) -> list[str]:
    """Build the arguments for the Python interpreter. They are not passed through a shell."""
    verb = "annotate" if stage == StageName.ANNOTATE else "launch"
    return ["-m", "lora_trainer", verb, "--config", config]


def spec_and_profile(snapshot: Snapshot) -> tuple[JobSpec, Profile]:
    """Return the spec and the profile of a job. `decide` starts a stage only if both are known."""
    assert snapshot.spec is not None
    assert snapshot.profile is not None
    return snapshot.spec, snapshot.profile


def _common_fields(
    snapshot: Snapshot, start: StartAnnotation | StartTraining, places: Places
) -> dict[str, Any]:
    """Return the fields that the configuration files of both stages share."""
    spec, profile = spec_and_profile(snapshot)
    return {
        "namespace": snapshot.namespace,
        "name": snapshot.name,
        "uid": snapshot.uid,
        "attempt": start.attempt,
        "base_model": profile.models[spec.base_model],
        "scoring": profile.scoring if spec.training.validation.measures_scores else None,
        "store": StoreAccess.of(profile.store, places.store_secret, places.store_ca),
        "work_dir": places.work,
        "termination_log": places.termination_log,
        "progress_host": places.progress_host,
        "progress_port": places.progress_port,
    }
