"""The spec of the `LoraTrainingJob` resource, which a user writes.

Defaults are defined here and not in the CRD. The API server would write the CRD's defaults into the resource, and a
GitOps controller would report them as a difference. The operator publishes the spec with all defaults in
`status.effective`. Field docstrings become the descriptions in the CRD.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, model_validator

from . import API_VERSION, KIND
from .base import Bool, Model
from .dataset import (
    Annotation,
    AnnotationLimits,
    AnnotationMode,
    Approval,
    Concept,
    ConceptType,
    Dataset,
    ExistingCaptions,
    Masks,
    OnBadImage,
    OnCaptionFailure,
)
from .fields import LINE, is_label, is_subdomain
from .recipes import Completed, complete, without
from .rules import is_never_compiled, violations
from .scheduling import AnnotateResources, Resources, RunPolicy, Scheduling, Toleration, TrainResources
from .training import (
    Adapter,
    AdapterType,
    BlockOverride,
    Checkpoint,
    Compile,
    Crop,
    Extraction,
    GradientCheckpointing,
    HuberSchedule,
    Loss,
    LossType,
    LossWeighting,
    LrScheduler,
    Method,
    MixedPrecision,
    Optimizer,
    Preview,
    PriorPreservation,
    Publish,
    QuantizeBase,
    Recipe,
    Targets,
    TextEncoder,
    TimestepDistribution,
    Timesteps,
    Training,
    Validation,
    Variant,
)

MAX_SPEC_BYTES = 64 << 10
"""Largest spec, in bytes of JSON. The status repeats it with every default, and etcd limits objects to 1.5 MB."""
MAX_ERRORS = 10
MAX_ERROR_CHARACTERS = 2000


class Reuse(StrEnum):
    IF_UNCHANGED = "IfUnchanged"
    NEVER = "Never"


class Output(Model):
    """Published files, and the reuse of an earlier adapter."""

    formats: Annotated[list[Literal["diffusers", "kohya"]], Field(min_length=1, max_length=2)] = [
        "diffusers",
        "kohya",
    ]
    """File formats of the adapter. diffusers: for the diffusers library. kohya: for ComfyUI, AUTOMATIC1111 and others."""
    captions: Bool = False
    """Publish the captions beside the adapter, as captions.jsonl. They describe the images, which stay private."""
    reuse: Reuse = Reuse.IF_UNCHANGED
    """IfUnchanged: if images, captions and settings were trained before in this namespace, finish at once with that adapter. Never: train again."""


class JobSpec(Model):
    """A LoRA adapter to train. All fields but runPolicy.suspend, runPolicy.retry, runPolicy.activeDeadlineSeconds and annotation.approvedCaptions are immutable."""

    profile: Annotated[str, Field(min_length=1, max_length=63, pattern=LINE)] = "default"
    """Profile of the administrator, which names the store, the language models and the base models."""
    dataset: Dataset
    concept: Concept
    annotation: Annotation = Annotation()
    base_model: Annotated[str, Field(min_length=1, max_length=128, pattern=LINE)] = "sdxl-base-1.0"
    """Base model, one that the profile names."""
    training: Training = Training()
    output: Output = Output()
    resources: Resources = Resources()
    scheduling: Scheduling = Scheduling()
    run_policy: RunPolicy = RunPolicy()

    @model_validator(mode="after")
    def _check_rules(self, info: ValidationInfo) -> Self:
        if not (info.context or {}).get("stored") and (messages := self._violations()):
            raise ValueError("; ".join(messages))
        return self

    def _violations(self) -> list[str]:
        """List the rules that the spec breaks, with the settings of the job and with those of each variant."""
        messages = violations(self)
        for name, training in self.training.trainings().items() if self.training.variants else ():
            spec = self.model_copy(update={"training": training})
            messages += [
                f"training.variants: with {name}, {message}"
                for message in violations(spec)
                if message not in messages
            ]
        return messages

    def completed(self, images: int | None) -> Completed:
        """Apply the recipe. Call it only where `training.recipe` is not None.

        Args:
            images: number of images with a caption; None: not known yet.
        """
        known = set(self._violations())

        def accepts(training: Training) -> bool:
            return set(self.model_copy(update={"training": training})._violations()) <= known

        return complete(self.training, self.concept.type, images, accepts)

    def with_recipe(self, images: int) -> JobSpec:
        """Return the spec with the values of its recipe, as the training stage gets it. Its recipe is then None.

        Args:
            images: number of images with a caption.
        """
        if self.training.recipe is Recipe.NONE:
            return self
        return self.model_copy(update={"training": self.completed(images).training})

    def effective(self, images: int | None = None) -> dict[str, Any]:
        """Return the spec for `status.effective`.

        It has every default and every value of the recipe, the name of the recipe that Auto stands for, and Never where
        `training.compile` has no effect.

        Args:
            images: number of images with a caption; None: not known yet. The fields that a recipe sets by it are then missing.
        """
        spec, recipe, pending = self, self.training.recipe, list[str]()
        if recipe is not Recipe.NONE:
            completed = self.completed(images)
            recipe, pending = completed.kind, list(completed.pending)
            spec = self.model_copy(update={"training": completed.training})
        wire = spec.to_wire()
        for path in pending:
            wire["training"] = without(wire["training"], path)
        wire["training"]["recipe"] = str(recipe)
        if spec.training.compile == Compile.AUTO and is_never_compiled(spec):
            wire["training"]["compile"] = str(Compile.NEVER)
        return wire


MUTABLE = {"runPolicy": ("suspend", "retry", "activeDeadlineSeconds"), "annotation": ("approvedCaptions",)}
"""The fields of `spec` that may change after creation, by the top-level field they are in."""


class InvalidResourceError(ValueError):
    """A resource that does not fit the model; the message names each field and what is wrong with it."""


def parse_spec(raw: Any, *, stored: bool = False) -> JobSpec:
    """Validate the `spec` of a resource.

    Args:
        stored: whether the resource was accepted before, maybe by an earlier version. It is then not refused for settings
            that do not go together: docs/explanation/api-versions.md.

    Raises:
        InvalidResourceError: naming every field that is wrong, or when the spec is larger than 64 KiB.
    """
    check_spec_size(raw)
    try:
        # as for the API server, a field has one spelling: that of the wire
        return JobSpec.model_validate(raw, context={"stored": stored}, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidResourceError(describe(error, "spec")) from None


def check_spec_size(raw: Any) -> None:
    """Check that a spec is small enough to be kept, and repeated in the status.

    Raises:
        InvalidResourceError: when it is larger than 64 KiB.
    """
    try:
        size = len(json.dumps(raw, ensure_ascii=False, default=str).encode(errors="replace"))
    except (ValueError, RecursionError):
        raise InvalidResourceError("spec: cannot be represented as JSON") from None
    if size > MAX_SPEC_BYTES:
        raise InvalidResourceError(f"spec: must be at most {MAX_SPEC_BYTES} bytes of JSON; it has {size}")


def parse_job_document(raw: Any) -> tuple[dict[str, Any], JobSpec]:
    """Split a whole resource, as read from a YAML file, into its metadata and its validated spec.

    The names are checked here, because a local run has no API server that does it. They become parts of paths and
    arguments.

    Raises:
        InvalidResourceError: when it is not a `LoraTrainingJob`, or a name or its spec is wrong.
    """
    if not isinstance(raw, dict) or raw.get("kind") != KIND or raw.get("apiVersion") != API_VERSION:
        raise InvalidResourceError(f"not a {KIND}: it must have apiVersion {API_VERSION} and kind {KIND}")
    metadata = raw.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise InvalidResourceError("metadata.name is missing")
    check_name(metadata["name"], "metadata.name")
    namespace = metadata.get("namespace")
    if namespace is not None:
        check_namespace(namespace, "metadata.namespace")
    return metadata, parse_spec(raw.get("spec"))


def check_name(name: object, field: str) -> None:
    """Check the name of a resource.

    Raises:
        InvalidResourceError: when Kubernetes would not accept it.
    """
    if not isinstance(name, str) or not is_subdomain(name):
        raise InvalidResourceError(
            f"{field}: must be at most 253 lower-case letters, digits, '-' and '.', with a letter or digit at "
            "both ends of each part"
        )


def check_namespace(namespace: object, field: str) -> None:
    """Check the name of a namespace.

    Raises:
        InvalidResourceError: when Kubernetes would not accept it.
    """
    if not isinstance(namespace, str) or not is_label(namespace):
        raise InvalidResourceError(
            f"{field}: must be at most 63 lower-case letters, digits and '-', with a letter or digit at both ends"
        )


PLAIN = {"missing": "is missing", "extra_forbidden": "is not a field"}
"""Messages in place of pydantic's, by the type of the error."""


def describe(error: ValidationError, root: str) -> str:
    """Put a pydantic error into one line: `spec.training.rank: Input should be ...; ...`.

    At most ten fields are named and at most 2,000 characters written, whatever was in the input.
    """
    errors = error.errors(include_url=False, include_context=False)
    parts = []
    for item in errors[:MAX_ERRORS]:
        path = ".".join([root, *(str(part)[:80] for part in item["loc"])])
        message = PLAIN.get(item["type"], item["msg"].removeprefix("Value error, "))
        if item["type"] not in ("missing", "extra_forbidden") and item["input"] is None:
            message = "is null: give it a value, or leave it out"
        parts.append(f"{path}: {message}")
    if len(errors) > MAX_ERRORS:
        parts.append(f"and {len(errors) - MAX_ERRORS} more errors")
    return "; ".join(parts)[:MAX_ERROR_CHARACTERS]


__all__ = [
    "MUTABLE",
    "Adapter",
    "AdapterType",
    "AnnotateResources",
    "Annotation",
    "AnnotationLimits",
    "AnnotationMode",
    "Approval",
    "BlockOverride",
    "Checkpoint",
    "Compile",
    "Concept",
    "ConceptType",
    "Crop",
    "Dataset",
    "ExistingCaptions",
    "Extraction",
    "GradientCheckpointing",
    "HuberSchedule",
    "InvalidResourceError",
    "JobSpec",
    "Loss",
    "LossType",
    "LossWeighting",
    "LrScheduler",
    "Masks",
    "Method",
    "MixedPrecision",
    "OnBadImage",
    "OnCaptionFailure",
    "Optimizer",
    "Output",
    "Preview",
    "PriorPreservation",
    "Publish",
    "QuantizeBase",
    "Recipe",
    "Resources",
    "Reuse",
    "RunPolicy",
    "Scheduling",
    "Targets",
    "TextEncoder",
    "TimestepDistribution",
    "Timesteps",
    "Toleration",
    "TrainResources",
    "Training",
    "Validation",
    "Variant",
    "check_name",
    "check_namespace",
    "check_spec_size",
    "describe",
    "parse_job_document",
    "parse_spec",
]
