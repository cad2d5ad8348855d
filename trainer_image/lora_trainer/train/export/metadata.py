"""The metadata of adapter files: Stability's ModelSpec 1.0.0, and kohya's `ss_` fields in a kohya file.

It does not depend on when or where a job ran, so that the same job writes the same file.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
from collections.abc import Mapping

from PIL import Image
from torch import Tensor

from lora_api.job import Adapter, AdapterType, Targets, Training
from lora_api.stages import TrainConfig

from ...new_tokens import tokens_of, trigger
from .tensors import tensors_to_bytes

THUMBNAIL_SIDE = 256
TOKENS_KEY = "token_embeddings"
"""Metadata key of the new tokens, in the adapter's files and in that of the embeddings."""


def common_metadata(config: TrainConfig) -> dict[str, str]:
    """Build the metadata of an adapter in any format: what it is, its trigger and its base model.

    It does not name the job, so that equal trainings write equal files in diffusers' format.
    """
    spec, tokens = config.spec, tokens_of(config.spec.training)
    summary = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.description": f"{spec.training.method} of {trigger(spec.concept, [])} on {spec.base_model}",
        "modelspec.trigger_phrase": trigger(spec.concept, tokens),
        "lora_training.base_model": config.base_model.identity(),
    }
    # `load_initial_adapter` recognises an adapter that needs embeddings by this key.
    return summary | ({TOKENS_KEY: "".join(tokens)} if tokens else {})


def describe(
    config: TrainConfig, images: int, prediction: str, preview: Image.Image | None
) -> dict[str, str]:
    """Build the metadata of a kohya file, which other programs show. It has no captions, because they are the customer's data.

    Args:
        images: number of training images.
        prediction: the base model's `prediction_type`, as diffusers names it.
        preview: image for the thumbnail; None for no thumbnail.
    """
    spec = config.spec
    training = spec.training
    size = f"{training.resolution}x{training.resolution}"
    arguments = _network_arguments(training.adapter, training.rank, training.alpha)
    metadata = {
        **common_metadata(config),
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": config.name,
        "modelspec.resolution": size,
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else "epsilon",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_sd_model_name": spec.base_model,
        "ss_v2": "False",
        "ss_network_module": "lycoris.kohya" if arguments else "networks.lora",
        "ss_network_dim": str(training.rank),
        "ss_network_alpha": f"{_alpha(training):g}",
        "ss_output_name": config.name,
        "ss_resolution": f"({training.resolution}, {training.resolution})",
        "ss_num_train_images": str(images),
        "ss_num_reg_images": str(_class_images(training)),
        "ss_learning_rate": str(training.learning_rate),
        "ss_lr_scheduler": training.lr_scheduler,
        "ss_lr_warmup_steps": str(training.lr_warmup_steps),
        "ss_optimizer": training.optimizer,
        "ss_mixed_precision": training.mixed_precision,
        "ss_max_train_steps": str(training.max_steps),
        "ss_batch_size_per_device": str(training.batch_size),
        "ss_gradient_accumulation_steps": str(training.gradient_accumulation_steps),
        "ss_min_snr_gamma": str(training.snr_gamma),
        "ss_noise_offset": str(training.noise_offset),
        "ss_caption_dropout_rate": str(training.caption_dropout),
        "ss_enable_bucket": str(training.crop == "Buckets"),
        "ss_seed": str(training.seed),
    }
    if training.text_encoder.train:
        metadata["ss_text_encoder_lr"] = str(training.text_encoder.learning_rate)
    if training.token_embeddings.train:
        metadata["lora_training.token_embeddings_lr"] = str(training.token_embeddings.learning_rate)
    if arguments:
        metadata["ss_network_args"] = json.dumps(arguments, sort_keys=True)
    if preview:
        metadata["modelspec.thumbnail"] = _thumbnail(preview)
    return metadata


def content_hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Compute the hashes of ModelSpec and kohya: the sha256 of the file after its header."""
    data = tensors_to_bytes(tensors)
    (length,) = struct.unpack("<Q", data[:8])
    digest = hashlib.sha256(data[8 + length :]).hexdigest()
    return {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}


def _network_arguments(adapter: Adapter, rank: int, alpha: int) -> dict[str, str]:
    """Return LyCORIS's arguments; empty for plain LoRA, which kohya's own module supports."""
    match adapter.type:
        case AdapterType.LOKR:
            return {"algo": "lokr", "factor": str(adapter.factor or -1)}
        case AdapterType.LOHA:
            return {"algo": "loha"}
    if adapter.targets == Targets.FULL:
        # LyCORIS's arguments for LoRA with convolutions. kohya's own module has conv_dim too, but not DoRA.
        convolutions = {
            "algo": "lora",
            "conv_dim": str(adapter.convolution_rank or rank),
            "conv_alpha": str(alpha),
        }
        return convolutions | ({"dora_wd": "True", "wd_on_out": "True"} if adapter.use_dora else {})
    return {"algo": "lora", "dora_wd": "True", "wd_on_out": "True"} if adapter.use_dora else {}


def _alpha(training: Training) -> float:
    """Return alpha as in the file. Readers scale by alpha / rank, but rsLoRA scales by alpha / sqrt(rank)."""
    if training.adapter.type != AdapterType.LORA:
        return training.rank  # the scale is in a factor: see `kohya.layer_tensors`
    return training.alpha * training.rank**0.5 if training.adapter.use_rslora else training.alpha


def _class_images(training: Training) -> int:
    prior = training.prior_preservation
    return prior.num_class_images if prior.enabled else 0


def _thumbnail(preview: Image.Image) -> str:
    small = preview.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    out = io.BytesIO()
    small.save(out, "jpeg", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
