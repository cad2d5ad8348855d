"""The `LoraTrainingJob` resource: what a user asks for.

Defaults live here and not in the CRD, so that nothing a GitOps controller compares is ever filled in
behind its back; the operator publishes what it used in `status.effective`. Field docstrings become the
descriptions in the CRD.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from . import API_VERSION, KIND
from .base import Bool, Int, Model, Real

Positive = Annotated[Int, Field(ge=1)]
Name = Annotated[str, Field(max_length=253)]
Quantity = Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
Words = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 _-]*$")]


class OnBadImage(StrEnum):
    FAIL = "Fail"
    SKIP = "Skip"


class AnnotationMode(StrEnum):
    LLM = "LLM"
    EXISTING = "Existing"
    TEMPLATE = "Template"


class ExistingCaptions(StrEnum):
    KEEP = "Keep"
    OVERWRITE = "Overwrite"


class OnCaptionFailure(StrEnum):
    FAIL = "Fail"
    SKIP = "Skip"
    TEMPLATE = "Template"


class Approval(StrEnum):
    NONE = "None"
    REQUIRED = "Required"


class Method(StrEnum):
    DREAMBOOTH_LORA = "DreamBoothLoRA"
    LORA = "LoRA"
    DREAMBOOTH_EXTRACT = "DreamBoothExtract"


class AdapterType(StrEnum):
    LORA = "LoRA"
    LOKR = "LoKr"
    LOHA = "LoHa"


class Optimizer(StrEnum):
    ADAMW_8BIT = "AdamW8bit"
    ADAMW = "AdamW"
    PRODIGY = "Prodigy"
    ADAFACTOR = "Adafactor"


class MixedPrecision(StrEnum):
    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"


class GradientCheckpointing(StrEnum):
    AUTO = "Auto"
    ALWAYS = "Always"
    NEVER = "Never"


class QuantizeBase(StrEnum):
    NONE = "None"
    NF4 = "NF4"
    INT8 = "Int8"


class Crop(StrEnum):
    SMART = "Smart"
    CENTER = "Center"
    BUCKETS = "Buckets"


class Publish(StrEnum):
    LAST = "Last"
    LOWEST_HELD_OUT_LOSS = "LowestHeldOutLoss"
    LOWEST_TRAINING_LOSS = "LowestTrainingLoss"


class Reuse(StrEnum):
    IF_UNCHANGED = "IfUnchanged"
    NEVER = "Never"


class Dataset(Model):
    prefix: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^/\x00-\x1f][^\x00-\x1f]*$")]
    """Where the photographs are: a key prefix in the profile's input bucket, for example customers/acme/statue/."""
    min_images: Annotated[Int, Field(ge=1, le=1000)] = 5
    """Fewer good images than this and the job fails before a GPU is asked for."""
    max_images: Annotated[Int, Field(ge=1, le=1000)] = 20
    """More images than this and the job fails; narrow the prefix or raise it."""
    on_bad_image: OnBadImage = OnBadImage.FAIL
    """What an image that cannot be used does to the job: Fail it, or Skip the image and name it in status."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_images > self.max_images:
            raise ValueError("minImages must not be above maxImages")
        return self


class Concept(Model):
    token: Words
    """The word that will call up the concept, for example CUS. A rare one, of one to three CLIP tokens."""
    class_name: Words
    """The kind of thing it is, for example statue."""


class AnnotationLimits(Model):
    max_cost_usd: Annotated[Decimal, Real(ge="0", le="10000"), Field(alias="maxCostUSD")] = Decimal("1.00")
    """Spend no more than this on captions, in USD at the profile's prices."""


class Annotation(Model):
    mode: AnnotationMode = AnnotationMode.LLM
    """LLM: a language model looks at each image. Existing: captions lie beside the images. Template: 'a photo of TOKEN CLASS'."""
    model: Annotated[str, Field(max_length=128)] = ""
    """An LLM that the profile allows; empty: the profile's default."""
    instructions: Annotated[str, Field(max_length=2000)] = ""
    """Extra wishes for the captions."""
    existing_captions: ExistingCaptions = ExistingCaptions.KEEP
    """Whether captions that came with the images are kept or written anew."""
    on_caption_failure: OnCaptionFailure = OnCaptionFailure.FAIL
    """What happens to an image that no caption could be had for: Fail the job, Skip the image, or use the Template."""
    approval: Approval = Approval.NONE
    """Required: stop after the captions until approvedCaptions names them."""
    approved_captions: Annotated[str, Field(max_length=71, pattern=r"^((sha256:)?[0-9a-f]{64})?$")] = ""
    """The sha256 of the captions a reviewer approved. May be set while the job waits."""
    limits: AnnotationLimits = AnnotationLimits()


class Adapter(Model):
    """How the change of a weight is written down."""

    type: AdapterType = AdapterType.LORA
    """LoRA: B A (Hu et al. 2021, arXiv:2106.09685). LoKr: a Kronecker product. LoHa: a Hadamard product of two low-rank matrices (both: LyCORIS, Yeh et al. 2023, arXiv:2309.14859); these two need output.formats: [kohya]."""
    use_dora: Annotated[Bool, Field(alias="useDoRA")] = False
    """LoRA with each output's magnitude learnt apart from its direction (Liu et al. 2024, arXiv:2402.09353)."""
    use_rslora: Annotated[Bool, Field(alias="useRSLoRA")] = False
    """LoRA scaled by alpha / sqrt(rank), so that high ranks learn as fast as low ones (Kalajdzievski 2023, arXiv:2312.03732)."""
    factor: Annotated[Int, Field(ge=0, le=1024)] = 0
    """LoKr: sides of the smaller of the two matrices, where they divide the layer's; 0: as near to square as they go."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if self.type != AdapterType.LORA and (self.use_dora or self.use_rslora):
            raise ValueError(f"useDoRA and useRSLoRA are for type LoRA, not {self.type}")
        return self


class Extraction(Model):
    """DreamBoothExtract: what becomes of the fine-tuned model's change."""

    layer_energy: Annotated[Decimal, Real(gt="0", le="1")] = Decimal("0.9999")
    """Take the layers that changed most, until they hold this share of the squared change of all."""
    rank_energy: Annotated[Decimal, Real(gt="0", le="1")] = Decimal("1")
    """Of a layer, take the singular values that hold this share of its squared change, at most `rank` of them."""
    convolutions: Bool = False
    """Fine-tune and extract the convolutions of the UNet's residual blocks and samplers too."""
    factor_steps: Annotated[Int, Field(ge=0, le=1000000)] = 0
    """The last so many of maxSteps train the extracted factors alone, on the base model."""


class TextEncoder(Model):
    train: Bool = False
    """Train adapters on both text encoders as well."""
    learning_rate: Annotated[Decimal, Real(gt="0", le="10")] = Decimal("5e-6")


class PriorPreservation(Model):
    enabled: Bool = False
    """Keep what the base model knows of the class by training on pictures of it that the base model drew."""
    num_class_images: Annotated[Int, Field(ge=1, le=10000)] = 100
    weight: Annotated[Decimal, Real(ge="0", le="100")] = Decimal("1.0")
    class_prompt: Annotated[str, Field(max_length=500)] = ""
    """Empty: 'a photo of CLASS'."""
    guidance_scale: Annotated[Decimal, Real(ge="1", le="30")] = Decimal("5.0")
    """Of the pictures that the base model draws."""


class Checkpoint(Model):
    every_steps: Annotated[Int, Field(ge=1, le=1000000)] = 100
    """A lost pod costs at most this many steps."""
    keep_last: Annotated[Int, Field(ge=1, le=100)] = 2


class Preview(Model):
    prompts: Annotated[list[Annotated[str, Field(min_length=1, max_length=500)]], Field(max_length=16)] = []
    """Prompts to draw, with and without the adapter. Empty: one, 'a photo of TOKEN CLASS'."""
    every_steps: Annotated[Int, Field(ge=0, le=1000000)] = 0
    """Draw during training too, every so many steps; 0: only at the end."""
    num_inference_steps: Annotated[Int, Field(ge=1, le=200)] = 25
    guidance_scale: Annotated[Decimal, Real(ge="1", le="30")] = Decimal("5.0")


class Validation(Model):
    """The loss on samples that training never sees, and what follows from it."""

    every_steps: Annotated[Int, Field(ge=0, le=1000000)] = 0
    """Measure every so many steps, and after the last; 0: never."""
    held_out_images: Annotated[Int, Field(ge=0, le=1000)] = 0
    """So many images, the last by name, are not trained on but measured on. 0: all are trained on, and measured on with noise that training never draws."""
    samples: Annotated[Int, Field(ge=1, le=1000)] = 16
    """Noised images in a measurement: the images in turn, the timesteps evenly spread. Each takes about a third of a step's time."""
    publish: Publish = Publish.LAST
    """The step whose adapter is published: the Last, or the measured one with the LowestHeldOutLoss or with the LowestTrainingLoss (a mean since the measurement before)."""
    patience: Annotated[Int, Field(ge=0, le=1000)] = 0
    """Stop after so many measurements in a row without a lower held-out loss; 0: train to maxSteps."""

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if not self.every_steps and (self.patience or self.publish != Publish.LAST):
            raise ValueError("patience and publish need everySteps above 0: nothing is measured without it")
        return self


LrScheduler = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "piecewise_constant",
]


class Training(Model):
    method: Method = Method.DREAMBOOTH_LORA
    """DreamBoothLoRA: captions that name the concept, optional prior preservation. LoRA: plain text-to-image. DreamBoothExtract: full DreamBooth, then an adapter taken out of the change by SVD."""
    resolution: Annotated[Int, Field(ge=32, le=4096, multiple_of=8)] = 1024
    """Side of the training images, in pixels."""
    rank: Annotated[Int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[Int, Field(ge=1, le=4096)] = 16
    """The adapter's change is scaled by alpha / rank."""
    adapter: Adapter = Adapter()
    max_steps: Annotated[Int, Field(ge=1, le=1000000)] = 500
    batch_size: Annotated[Int, Field(ge=1, le=256)] = 1
    gradient_accumulation_steps: Annotated[Int, Field(ge=1, le=1024)] = 1
    learning_rate: Annotated[Decimal, Real(gt="0", le="10")] = Decimal("1e-4")
    lr_scheduler: LrScheduler = "constant"
    """A name of diffusers.optimization."""
    lr_warmup_steps: Annotated[Int, Field(ge=0, le=1000000)] = 0
    optimizer: Optimizer = Optimizer.ADAMW_8BIT
    mixed_precision: MixedPrecision = MixedPrecision.FP16
    """Of the frozen base model; the adapter's own weights are always float32."""
    gradient_checkpointing: GradientCheckpointing = GradientCheckpointing.AUTO
    """Less memory for about a third more time. Auto: only where memory needs it."""
    quantize_base: QuantizeBase = QuantizeBase.NONE
    """The frozen UNet in fewer bits, for small GPUs."""
    snr_gamma: Annotated[Decimal, Real(ge="0", le="100")] = Decimal("5.0")
    """Min-SNR loss weighting (Hang et al. 2023, arXiv:2303.09556); 0: off."""
    noise_offset: Annotated[Decimal, Real(ge="0", le="1")] = Decimal("0")
    caption_dropout: Annotated[Decimal, Real(ge="0", le="1")] = Decimal("0")
    """Share of steps that train on an empty caption."""
    ema_decay: Annotated[Decimal, Real(ge="0", le="0.999999")] = Decimal("0")
    """Publish a moving average of the adapter over the steps: each keeps this share of it, in the first steps less. 0: off."""
    extraction: Extraction = Extraction()
    text_encoder: TextEncoder = TextEncoder()
    prior_preservation: PriorPreservation = PriorPreservation()
    crop: Crop = Crop.SMART
    """How an image becomes a training image: Smart and Center crop a square, Buckets keeps its shape."""
    seed: Annotated[Int, Field(ge=0, le=4294967295)] = 0
    checkpoint: Checkpoint = Checkpoint()
    validation: Validation = Validation()
    preview: Preview = Preview()

    @model_validator(mode="after")
    def _tunes_before_it_extracts(self) -> Self:
        if self.extraction.factor_steps >= self.max_steps:
            raise ValueError(
                "extraction.factorSteps must be below maxSteps: the model is fine-tuned before it"
            )
        return self


class Output(Model):
    formats: Annotated[list[Literal["diffusers", "kohya"]], Field(min_length=1, max_length=2)] = [
        "diffusers",
        "kohya",
    ]
    reuse: Reuse = Reuse.IF_UNCHANGED
    """IfUnchanged: a job whose images, captions and settings were trained before ends at once with that adapter."""


class AnnotateResources(Model):
    cpu: Quantity = "500m"
    memory: Quantity = "512Mi"


class TrainResources(Model):
    gpus: Annotated[Int, Field(ge=0, le=16)] = 1
    """GPUs for the training pod; 0 trains on the CPU, which only small models are good for."""
    gpu_resource: Annotated[
        str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
    ] = "nvidia.com/gpu"
    cpu: Quantity = "4"
    memory: Quantity = "32Gi"


class Resources(Model):
    annotate: AnnotateResources = AnnotateResources()
    train: TrainResources = TrainResources()


class Toleration(Model):
    key: Name = ""
    operator: Literal["Exists", "Equal"] = "Equal"
    value: Name = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    toleration_seconds: Annotated[Int, Field(ge=0)] | None = None


class Scheduling(Model):
    """Where the training pod may run. The annotation pod needs no GPU and goes anywhere."""

    queue_name: Annotated[str, Field(max_length=63)] = ""
    """A Kueue LocalQueue."""
    priority_class_name: Name = ""
    runtime_class_name: Name = ""
    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=16)] = {}
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = []


class RunPolicy(Model):
    suspend: Bool = False
    """Stop after the step that runs has saved a checkpoint; false again resumes. May be changed at any time."""
    backoff_limit: Annotated[Int, Field(ge=0, le=100)] = 2
    """How often a step that failed of itself is tried again. Preemption and lost nodes are not counted."""
    start_deadline_seconds: Positive | None = None
    """Give up on a step whose pod has not started after this long."""
    active_deadline_seconds: Positive | None = None
    """Give up on the job after this long. May be changed at any time."""
    child_ttl_seconds_after_finished: Annotated[Int, Field(ge=0, alias="childTTLSecondsAfterFinished")] = (
        86400
    )
    """How long finished pods are kept for their logs."""
    ttl_seconds_after_finished: Annotated[Int | None, Field(ge=0, alias="ttlSecondsAfterFinished")] = None
    """Delete this resource so long after its end; its adapter stays. Leave it unset under GitOps."""


class JobSpec(Model):
    profile: Annotated[str, Field(min_length=1, max_length=63)] = "default"
    """Endpoints and Secrets come from a profile that the administrator defines, never from the job."""
    dataset: Dataset
    concept: Concept
    annotation: Annotation = Annotation()
    base_model: Annotated[str, Field(min_length=1, max_length=128)] = "sdxl-base-1.0"
    """A model that the profile names."""
    training: Training = Training()
    output: Output = Output()
    resources: Resources = Resources()
    scheduling: Scheduling = Scheduling()
    run_policy: RunPolicy = RunPolicy()

    @model_validator(mode="after")
    def _has_a_format(self) -> Self:
        kind = self.training.adapter.type
        if kind != AdapterType.LORA and self.output.formats != ["kohya"]:
            raise ValueError(f"output.formats must be [kohya]: diffusers has no format for {kind}")
        return self


MUTABLE = {"runPolicy": ("suspend", "activeDeadlineSeconds"), "annotation": ("approvedCaptions",)}
"""The fields of `spec` that may change after creation, by the top-level field they are in."""


class InvalidResourceError(ValueError):
    """A resource that does not fit the model; the message names each field and what it wants."""


def parse_spec(raw: Any) -> JobSpec:
    """Validate the `spec` of a resource.

    Raises:
        InvalidResourceError: naming every field that is wrong.
    """
    try:
        return JobSpec.model_validate(raw)
    except ValidationError as error:
        raise InvalidResourceError(describe(error, "spec")) from None


def parse_job_document(raw: Any) -> tuple[dict[str, Any], JobSpec]:
    """Split a whole resource, as read from a YAML file, into its metadata and its validated spec.

    Raises:
        InvalidResourceError: when it is no `LoraTrainingJob` or its spec is wrong.
    """
    if not isinstance(raw, dict) or raw.get("kind") != KIND or raw.get("apiVersion") != API_VERSION:
        raise InvalidResourceError(f"not a {KIND}: it must have apiVersion {API_VERSION} and kind {KIND}")
    metadata = raw.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise InvalidResourceError("metadata.name is missing")
    return metadata, parse_spec(raw.get("spec"))


def describe(error: ValidationError, root: str) -> str:
    """A pydantic error in one line of plain words: `spec.training.rank: Input should be ...; ...`."""
    parts = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        path = ".".join([root, *(str(step) for step in item["loc"])])
        parts.append(f"{path}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(parts)
