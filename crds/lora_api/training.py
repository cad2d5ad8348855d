"""Fields of a spec for the training.

They are one module because `Training` refers to all of them, and because readers look up all settings in one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from .base import Bool, Int, Model, Real
from .fields import LABEL, MAX_KEY_BYTES, UNSAFE, ObjectKey, Prompt, server_rules


class Method(StrEnum):
    DREAMBOOTH_LORA = "DreamBoothLoRA"
    LORA = "LoRA"
    DREAMBOOTH_EXTRACT = "DreamBoothExtract"


class Recipe(StrEnum):
    AUTO = "Auto"
    SUBJECT = "Subject"
    PERSON = "Person"
    STYLE = "Style"
    NONE = "None"


class AdapterType(StrEnum):
    LORA = "LoRA"
    LOKR = "LoKr"
    LOHA = "LoHa"


class Targets(StrEnum):
    ATTENTION = "Attention"
    ATTENTION_AND_FEED_FORWARD = "AttentionAndFeedForward"
    FULL = "Full"


class Optimizer(StrEnum):
    ADAMW_8BIT = "AdamW8bit"
    ADAMW = "AdamW"
    PRODIGY = "Prodigy"
    ADAFACTOR = "Adafactor"
    CAME = "CAME"
    PRODIGY_SCHEDULE_FREE = "ProdigyScheduleFree"


class LossType(StrEnum):
    L2 = "L2"
    HUBER = "Huber"


class HuberSchedule(StrEnum):
    CONSTANT = "Constant"
    SNR = "SNR"


class LossWeighting(StrEnum):
    MIN_SNR = "MinSNR"
    DEBIASED = "Debiased"


class TimestepDistribution(StrEnum):
    UNIFORM = "Uniform"
    LOGIT_NORMAL = "LogitNormal"


class MixedPrecision(StrEnum):
    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"


class GradientCheckpointing(StrEnum):
    AUTO = "Auto"
    ALWAYS = "Always"
    NEVER = "Never"


class Compile(StrEnum):
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
    BEST_SCORE = "BestScore"


LrScheduler = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
]
"""Learning-rate schedules, by their names in diffusers.optimization. `piecewise_constant` is missing because it needs
step rules, for which the spec has no field."""

Steps = Annotated[Int, Field(ge=0, le=1000000)]


class BlockOverride(Model):
    """Settings of one block of the UNet."""

    block: Annotated[str, Field(max_length=32, pattern=r"^((down|up)_blocks\.[0-9]|mid_block)$")]
    """Name of the block in diffusers: down_blocks.0, mid_block, up_blocks.2, and so on."""
    rank: Annotated[Int, Field(ge=0, le=1024)] | None = None
    """Rank of the adapter in this block. 0: no adapter. Unset: `rank`."""
    learning_rate_scale: Annotated[Decimal, Real(gt="0", le="100")] = Decimal("1")
    """Factor of `learningRate` in this block."""


class Adapter(Model):
    """Factorization of the adapter, and the layers that get one."""

    type: AdapterType = AdapterType.LORA
    """LoRA: the product of two low-rank matrices (Hu et al. 2021, arXiv:2106.09685). LoKr: a Kronecker product. LoHa: a Hadamard product of two low-rank matrices (both: LyCORIS, Yeh et al. 2023, arXiv:2309.14859). LoKr and LoHa need output.formats: [kohya]."""
    use_dora: Annotated[Bool, Field(alias="useDoRA")] = False
    """Learn the magnitude of each output separately from its direction (DoRA, Liu et al. 2024, arXiv:2402.09353). LoRA only."""
    use_rslora: Annotated[Bool, Field(alias="useRSLoRA")] = False
    """Scale by alpha / sqrt(rank), so that high ranks learn as fast as low ones (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732). LoRA only."""
    targets: Targets = Targets.ATTENTION
    """Layers that get an adapter. Attention: the projections of every attention. AttentionAndFeedForward: the feed-forward layers too. Full: all linear layers and convolutions of the UNet's blocks, as in kohya's LoRA-C3Lier."""
    convolution_rank: Annotated[Int, Field(ge=0, le=1024)] = 0
    """Rank of the 3x3 convolutions with targets Full. 0: `rank`. Their change is scaled by alpha / convolutionRank."""
    blocks: Annotated[list[BlockOverride], Field(max_length=20)] = []
    """Ranks and learning rates of single blocks of the UNet."""
    rank_dropout: Annotated[Decimal, Real(ge="0", le="0.9")] = Decimal("0")
    """Probability that a rank of a UNet layer is dropped for a sample while training; the others are scaled up (LyCORIS, Yeh et al. 2023, arXiv:2309.14859)."""
    factor: Annotated[Int, Field(ge=0, le=1024)] = 0
    """LoKr only: side of the smaller of the two matrices, where it divides the layer's. 0: as near to square as possible."""


class Extraction(Model):
    """Extraction of an adapter from the model that DreamBoothExtract fine-tunes."""

    layer_energy: Annotated[Decimal, Real(gt="0", le="1")] = Decimal("0.9999")
    """Share of the squared change of all layers that the extracted layers, those that changed most, must hold."""
    rank_energy: Annotated[Decimal, Real(gt="0", le="1")] = Decimal("1")
    """Share of a layer's squared change that its extracted singular values must hold. There are at most `rank` of them."""
    convolutions: Bool = False
    """Also fine-tune and extract the convolutions of the UNet's residual blocks and samplers."""
    factor_steps: Steps = 0
    """Number of final steps of maxSteps that train the extracted factors on the base model, in place of the UNet's own weights."""


class TextEncoder(Model):
    """Training of the two text encoders."""

    train: Bool = False
    """Also train adapters on both text encoders."""
    learning_rate: Annotated[Decimal, Real(gt="0", le="10")] = Decimal("5e-6")
    """Learning rate of the text encoders' adapters. Default: 5e-6; for Prodigy and ProdigyScheduleFree, that of the UNet."""


class TokenEmbeddings(Model):
    """Training of new tokens that stand for concept.token: pivotal tuning, as in diffusers' train_dreambooth_lora_sdxl_advanced.py."""

    train: Bool = False
    """Add new tokens to both tokenizers, put them in place of concept.token in every prompt, and train their embeddings beside the adapter. embeddings.safetensors is published with the adapter and is needed to use it."""
    tokens: Annotated[Int, Field(ge=1, le=8)] = 2
    """Number of new tokens."""
    learning_rate: Annotated[Decimal, Real(gt="0", le="10")] = Decimal("3e-4")
    """Learning rate of the embeddings. Default: 3e-4; for Prodigy, that of the UNet."""
    initializer: Annotated[Prompt, Field(max_length=64)] = ""
    """Words whose embeddings the new tokens start from, token by token and repeated if there are fewer, for example the class. Empty: random values with the standard deviation of the model's embeddings."""
    stop_after: Annotated[Decimal, Real(gt="0", le="1")] = Decimal("0.5")
    """Share of maxSteps after which only the adapter is trained."""


class PriorPreservation(Model):
    """Training on images of the class, so that the model keeps what it knows of the class (DreamBooth, Ruiz et al. 2022, arXiv:2208.12242)."""

    enabled: Bool = False
    """Also train on images of the class that the base model generated."""
    num_class_images: Annotated[Int, Field(ge=1, le=10000)] = 100
    """Number of images to generate."""
    weight: Annotated[Decimal, Real(ge="0", le="100")] = Decimal("1.0")
    """Weight of the loss on these images."""
    class_prompt: Prompt = ""
    """Prompt to generate them with. Empty: 'a photo of CLASS', for a style 'an image in CLASS style'."""
    guidance_scale: Annotated[Decimal, Real(ge="1", le="30")] = Decimal("5.0")
    """Classifier-free guidance scale to generate them with."""


class Loss(Model):
    """Loss function and its weight at each timestep."""

    type: LossType = LossType.L2
    """L2: the squared error. Huber: the pseudo-Huber error, which grows linearly for outliers (Khrapov et al. 2024, arXiv:2403.16728)."""
    huber_c: Annotated[Decimal, Real(gt="0", le="10")] = Decimal("0.1")
    """Huber: errors below this are squared, errors above it are linear."""
    huber_schedule: HuberSchedule = HuberSchedule.SNR
    """Huber: SNR lowers the threshold from 1 at no noise to huberC at full noise; Constant uses huberC at every timestep."""
    weighting: LossWeighting = LossWeighting.MIN_SNR
    """MinSNR: the weight that snrGamma defines. Debiased: 1 / sqrt(SNR), for velocity 1 / (SNR + 1) (Yu et al. 2023, arXiv:2310.08442); snrGamma is not used."""


class Timesteps(Model):
    """The noise levels that samples are drawn from."""

    distribution: TimestepDistribution = TimestepDistribution.UNIFORM
    """Distribution of the noise levels. Uniform: every level alike. LogitNormal: the sigmoid of a normal variable (Esser et al. 2024, arXiv:2403.03206)."""
    mean: Annotated[Decimal, Real(ge="0", le="10")] = Decimal("0")
    """LogitNormal: mean of the normal variable; above 0 favours high noise."""
    std: Annotated[Decimal, Real(gt="0", le="10")] = Decimal("1")
    """LogitNormal: standard deviation of the normal variable."""
    min: Annotated[Decimal, Real(ge="0", le="1")] = Decimal("0")
    """Lower end of the noise levels, as a share of the schedule; 0 is no noise."""
    max: Annotated[Decimal, Real(gt="0", le="1")] = Decimal("1")
    """Upper end of the noise levels, as a share of the schedule; 1 is full noise."""


class Checkpoint(Model):
    """Checkpoints in the store, from which a replaced pod resumes."""

    every_steps: Annotated[Int, Field(ge=1, le=1000000)] = 100
    """Number of steps between checkpoints. A lost pod repeats at most this many."""
    keep_last: Annotated[Int, Field(ge=1, le=100)] = 2
    """Number of checkpoints to keep."""


class Preview(Model):
    """Preview images, generated with and without the adapter."""

    prompts: Annotated[list[Annotated[Prompt, Field(min_length=1)]], Field(max_length=16)] = []
    """Prompts to generate previews for. Empty: one, 'a photo of TOKEN CLASS', for a style 'an image in TOKEN CLASS style'."""
    every_steps: Steps = 0
    """Number of steps between previews. 0: only after the last step."""
    num_inference_steps: Annotated[Int, Field(ge=1, le=200)] = 25
    """Number of denoising steps for a preview."""
    guidance_scale: Annotated[Decimal, Real(ge="1", le="30")] = Decimal("5.0")
    """Classifier-free guidance scale of the previews."""


class InitialAdapter(Model):
    """A published adapter that training starts from, for example after images were added to the dataset."""

    key: Annotated[
        ObjectKey,
        Field(
            min_length=1,
            json_schema_extra=server_rules(
                (
                    r"!self.matches(r'(^|/)\.{0,2}(/|$)')",
                    "must be a relative key without empty, '.' or '..' parts",
                ),
                (f"bytes(self).size() <= {MAX_KEY_BYTES}", f"must have at most {MAX_KEY_BYTES} bytes"),
                (
                    f"!self.matches(r'[{UNSAFE}\\\\]')",
                    "must not contain control characters or backslashes",
                ),
            ),
        ),
    ]
    """Object key of its file in diffusers' format in the profile's output bucket, within the job's namespace: status.adapter.uri without s3://BUCKET/."""
    sha256: Annotated[str, Field(max_length=71, pattern=r"^(sha256:)?[0-9a-f]{64}$")]
    """SHA-256 digest of the file: status.adapter.sha256."""


class Augmentation(Model):
    """Variants of each image of the concept. Each sample takes one of them; all are encoded once, before training."""

    flip: Bool = False
    """Add mirrored images. They harm text, faces and other subjects that are not symmetric."""
    crop_jitter: Annotated[Decimal, Real(ge="0", le="0.5")] = Decimal("0")
    """Largest share of the side by which crops are shrunk and moved at random. 0: one crop for each image."""
    crop_variants: Annotated[Int, Field(ge=2, le=32)] = 4
    """Number of crops of each image with cropJitter, the plain one among them."""
    extra_resolutions: Annotated[
        list[Annotated[Int, Field(ge=32, le=4096, multiple_of=8)]], Field(max_length=4)
    ] = []
    """Further resolutions that each image is trained at, below `resolution`."""


class Masking(Model):
    """Masks of the subject: NAME-mask.png beside the image NAME, of the same size; white is the subject. annotation.masks makes masks of images without."""

    outside_weight: Annotated[Decimal, Real(ge="0", le="1")] = Decimal("0.1")
    """Weight of the loss outside of an image's mask. 0 makes artefacts likely in the background. 1: masks are not used."""


class Validation(Model):
    """Measurement of the loss on samples that are not trained on, and what depends on it."""

    every_steps: Steps = 0
    """Number of steps between measurements; there is one after the last step too. 0: no measurement."""
    held_out_images: Annotated[Int, Field(ge=0, le=1000)] = 0
    """Number of images, the last by name, that are measured on instead of trained on. 0: train on every image, and measure on the same images with noise that training never uses."""
    samples: Annotated[Int, Field(ge=1, le=1000)] = 16
    """Number of noised images in a measurement: the images in turn, with evenly spaced timesteps. Each takes about a third of a step's time."""
    publish: Publish = Publish.LAST
    """Step whose adapter is published. Last: the last step. LowestHeldOutLoss: the measured step with the lowest held-out loss. LowestTrainingLoss: the measured step with the lowest mean training loss since the previous measurement. BestScore: the measured step whose images score best, by the profile's scoring models."""
    scores: Bool = False
    """Measure likeness and prompt fidelity of generated images too, by the profile's scoring models. BestScore does so in any case."""
    patience: Annotated[Int, Field(ge=0, le=1000)] = 0
    """Stop after this many consecutive measurements without a lower held-out loss or, with publish BestScore, without a better score. 0: train to maxSteps."""

    @property
    def measures_scores(self) -> bool:
        return self.every_steps > 0 and (self.scores or self.publish == Publish.BEST_SCORE)


class Variant(Model):
    """Settings that replace those of the job in one of its variants."""

    name: Annotated[str, Field(max_length=32, pattern=f"^{LABEL}$")]
    """Name of the variant in logs, the report and the manifest: lower-case letters, digits and hyphens."""
    rank: Annotated[Int, Field(ge=1, le=1024)] | None = None
    """Rank of the adapter's matrices. Unset: that of the job, as for all other fields."""
    alpha: Annotated[Int, Field(ge=1, le=4096)] | None = None
    """Scale of the adapter: its change is multiplied by alpha / rank."""
    targets: Targets | None = None
    """Layers that get an adapter."""
    max_steps: Annotated[Int, Field(ge=1, le=1000000)] | None = None
    """Number of optimizer steps."""
    learning_rate: Annotated[Decimal, Real(gt="0", le="10")] | None = None
    """Learning rate of the UNet's adapter."""
    seed: Annotated[Int, Field(ge=0, le=4294967295)] | None = None
    """Seed of every random number in training."""


class Training(Model):
    """Settings of the training."""

    method: Method = Method.DREAMBOOTH_LORA
    """DreamBoothLoRA: an adapter trained on captions that name the concept, with optional prior preservation. LoRA: plain text-to-image. DreamBoothExtract: full DreamBooth of the UNet, then an adapter extracted from the change by SVD; with textEncoder.train, adapters on the text encoders are trained at the same time."""
    recipe: Recipe = Recipe.NONE
    """Defaults for the fields of `training` that are not set, by the kind of concept and the number of images. Auto: the recipe of concept.type. Subject, Person, Style: that recipe. None: the default of each field. status.effective has the values."""
    resolution: Annotated[Int, Field(ge=32, le=4096, multiple_of=8)] = 1024
    """Side of the training images, in pixels."""
    rank: Annotated[Int, Field(ge=1, le=1024)] = 16
    """Rank of the adapter's matrices."""
    alpha: Annotated[Int, Field(ge=1, le=4096)] = 16
    """Scale of the adapter: its change is multiplied by alpha / rank."""
    adapter: Adapter = Adapter()
    initial: Annotated[InitialAdapter | None, Field(alias="from")] = None
    """Adapter that training starts from. It must have the same rank, alpha and layers. Unset: an adapter without effect."""
    max_steps: Annotated[Int, Field(ge=1, le=1000000)] = 500
    """Number of optimizer steps."""
    batch_size: Annotated[Int, Field(ge=1, le=256)] = 1
    """Number of images in a batch, on each GPU."""
    gradient_accumulation_steps: Annotated[Int, Field(ge=1, le=1024)] = 1
    """Number of batches whose gradients make one step."""
    learning_rate: Annotated[Decimal, Real(gt="0", le="10")] = Decimal("1e-4")
    """Learning rate of the UNet's adapter or, with method DreamBoothExtract, of the UNet's own weights, for which 1e-6 to 5e-6 is usual. Default: 1e-4; for Prodigy and ProdigyScheduleFree, which multiply it by their own estimate, 1."""
    lora_plus_ratio: Annotated[Decimal, Real(ge="1", le="1000")] = Decimal("1")
    """Factor of the learning rate of LoRA's B matrices (LoRA+, Hayou et al. 2024, arXiv:2402.12354). 1: one rate for both."""
    lr_scheduler: LrScheduler = "constant"
    """Learning-rate schedule, by its name in diffusers.optimization."""
    lr_warmup_steps: Steps = 0
    """Number of steps over which the learning rate rises from 0, with any schedule."""
    lr_scheduler_cycles: Annotated[Int, Field(ge=2, le=1000)] = 3
    """Number of cosines, one after another, with lrScheduler cosine_with_restarts."""
    lr_scheduler_power: Annotated[Decimal, Real(gt="0", le="10")] = Decimal("2")
    """Exponent of the remaining share of the steps, with lrScheduler polynomial. 1 is linear."""
    lr_scheduler_end_ratio: Annotated[Decimal, Real(ge="0", le="0.99")] = Decimal("0")
    """Learning rate that falling schedules end at, as a share of learningRate."""
    optimizer: Optimizer = Optimizer.ADAMW_8BIT
    """Optimizer. AdamW8bit: AdamW with its state in 8 bits (Dettmers et al. 2021, arXiv:2110.02861). Prodigy: adapts the learning rate by itself (Mishchenko and Defazio 2023, arXiv:2306.06101). Adafactor: factorized second moments (Shazeer and Stern 2018, arXiv:1804.04235)."""
    mixed_precision: MixedPrecision = MixedPrecision.FP16
    """Number format of the frozen base model. The adapter's own weights are always float32."""
    gradient_checkpointing: GradientCheckpointing = GradientCheckpointing.AUTO
    """Recompute activations in the backward pass: less memory for about a third more time. Auto: only where memory requires it."""
    compile: Compile = Compile.AUTO
    """Record the kernels of a step as a CUDA graph, which the GPU then runs without waiting for the CPU. Auto: where the GPU waits for the CPU, there is memory for it, and the remaining steps repay the recording. A recording that fails is logged, and training continues without it. On a CPU, and with textEncoder.train, tokenEmbeddings.train or adapter.rankDropout, status.effective says Never."""
    quantize_base: QuantizeBase = QuantizeBase.NONE
    """Number format of the frozen UNet's weights, for small GPUs. NF4: 4 bits. Int8: 8 bits. None: that of mixedPrecision."""
    snr_gamma: Annotated[Decimal, Real(ge="0", le="100")] = Decimal("5.0")
    """Gamma of the Min-SNR loss weighting (Hang et al. 2023, arXiv:2303.09556). 0: off."""
    loss: Loss = Loss()
    timesteps: Timesteps = Timesteps()
    noise_offset: Annotated[Decimal, Real(ge="0", le="1")] = Decimal("0")
    """Strength of a constant added to each channel of the noise, which helps with very dark and very bright images. 0: off."""
    caption_dropout: Annotated[Decimal, Real(ge="0", le="1")] = Decimal("0")
    """Share of samples that are trained on with an empty caption."""
    ema_decay: Annotated[Decimal, Real(ge="0", le="0.999999")] = Decimal("0")
    """Publish an exponential moving average of the adapter: this is the share of it that each step keeps, less in the first steps. 0: off."""
    extraction: Extraction = Extraction()
    text_encoder: TextEncoder = TextEncoder()
    token_embeddings: TokenEmbeddings = TokenEmbeddings()
    prior_preservation: PriorPreservation = PriorPreservation()
    crop: Crop = Crop.SMART
    """Method to bring an image to the training size. Smart: a square around the subject. Center: a square from the centre. Buckets: the aspect ratio is kept."""
    augmentation: Augmentation = Augmentation()
    masking: Masking = Masking()
    seed: Annotated[Int, Field(ge=0, le=4294967295)] = 0
    """Seed of every random number in training."""
    checkpoint: Checkpoint = Checkpoint()
    validation: Validation = Validation()
    preview: Preview = Preview()
    variants: Annotated[list[Variant], Field(max_length=8)] = []
    """Sets of settings to train one after another in the same pod, on the same base model and encoded images. The variant with the best score is published or, where scores are not measured, the one with the lowest held-out loss; the report compares all. Empty: one training with the settings of the job."""

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of all variants."""
        return sum(training.max_steps for training in self.trainings().values())

    def trainings(self) -> dict[str, Self]:
        """Return the settings of each variant by its name; those of the job, with an empty name, without variants."""
        return {variant.name: self._with(variant) for variant in self.variants} or {"": self}

    def _with(self, variant: Variant) -> Self:
        """Return the settings of a variant, as of a job that has no variants."""
        changes: dict[str, Any] = {
            name: value
            for name in ("rank", "alpha", "max_steps", "learning_rate", "seed")
            if (value := getattr(variant, name)) is not None
        }
        if variant.learning_rate is not None:
            for name in _SECTIONS_WITH_UNET_RATE.get(self.optimizer, {}).values():
                section = getattr(self, name)
                # ProdigyScheduleFree allows another rate, which the variant keeps
                if section.learning_rate == self.learning_rate:
                    changes[name] = section.model_copy(update={"learning_rate": variant.learning_rate})
        if variant.targets is not None:
            changes["adapter"] = self.adapter.model_copy(update={"targets": variant.targets})
        return self.model_copy(update={**changes, "variants": []})

    @model_serializer(mode="wrap")
    def _omit_what_the_recipe_sets(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Serialize only the fields that were set while a recipe has yet to set the others.

        Whoever reads the settings again, for example a stage, can then still tell them apart.
        """
        data: dict[str, Any] = serialize(self)
        return data if self.recipe is Recipe.NONE else _set_fields(self, data)

    @model_validator(mode="before")
    @classmethod
    def _choose_learning_rates(cls, data: Any) -> Any:
        """Fill in the learning rates that are not set, if the optimizer is a Prodigy.

        It multiplies its own estimate by the learning rate, so the default is 1 instead of the fields' defaults. The
        text encoders and the token embeddings get the rate of the UNet: Prodigy takes one rate only, and
        ProdigyScheduleFree, which does not support token embeddings, makes an estimate for each. Input may use the
        fields' camelCase or Python names. A rate is set under the name that the input uses, so that a name which is not
        allowed is still refused.
        """
        # compared one by one, because an invalid optimizer may have no hash
        if not isinstance(data, dict) or data.get("optimizer") not in list(_SECTIONS_WITH_UNET_RATE):
            return data
        data = dict(data)
        rate_name = _given_name(data, "learningRate", "learning_rate")
        if data.get(rate_name) is None:
            data[rate_name] = Decimal(1)
        for name, python_name in _SECTIONS_WITH_UNET_RATE[data["optimizer"]].items():
            given = _given_name(data, name, python_name)
            section = {} if data.get(given) is None else data[given]
            if isinstance(section, dict):
                section_rate = _given_name(section, "learningRate", "learning_rate")
                if section.get(section_rate) is None:
                    data[given] = {**section, section_rate: data[rate_name]}
        return data


_SECTIONS_WITH_UNET_RATE: Mapping[str, Mapping[str, str]] = {
    Optimizer.PRODIGY: {"textEncoder": "text_encoder", "tokenEmbeddings": "token_embeddings"},
    Optimizer.PRODIGY_SCHEDULE_FREE: {"textEncoder": "text_encoder"},
}
"""Sections of `Training` whose learning rate is that of the UNet unless they set one, by optimizer: camelCase and Python
name."""


def _given_name(data: Mapping[str, Any], name: str, python_name: str) -> str:
    """Return the name under which data has a field: the Python name only where the camelCase one is missing."""
    return python_name if python_name in data and name not in data else name


def _set_fields(model: Model, data: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a model's serialized data whose fields were set, in nested models too."""
    fields: dict[str, Any] = {}
    for name, field in type(model).model_fields.items():
        key = name if name in data else field.alias or name
        if name in model.model_fields_set and key in data:
            value = getattr(model, name)
            fields[key] = _set_fields(value, data[key]) if isinstance(value, Model) else data[key]
    return fields
