"""Checks before a local run for an API key and a GPU, whose absence would otherwise cost time or money."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lora_api.dataset import OnBadImage
from lora_api.job import AnnotationMode, ExistingCaptions, JobSpec
from lora_api.profile import Profile

from ..errors import MachineError, UsageError

if TYPE_CHECKING:
    from standardwebhooks import Webhook as Signer

LLM_KEYS = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
WEBHOOK_SECRET = "LORA_WEBHOOK_SECRET"
COUNT_GPUS = "import torch; print(torch.cuda.device_count())"


def llm_key(profile: Profile) -> str:
    """Read the API key of the profile's LLM service from the environment; empty if it is not set."""
    variable = LLM_KEYS.get(profile.llm.provider) if profile.llm else None
    return os.environ.get(variable, "") if variable else ""


def require_key(spec: JobSpec, profile: Profile, images: Path | None) -> None:
    """Check that the API key is set, if the job needs an LLM service.

    Raises:
        UsageError: when the captions need an LLM service and its key is not set.
    """
    if spec.annotation.mode != AnnotationMode.LLM or profile.llm is None:
        return
    variable = LLM_KEYS.get(profile.llm.provider)
    if variable is None or not profile.llm.secret_name or llm_key(profile) or _all_captioned(spec, images):
        return
    raise UsageError(
        f"annotation.mode is LLM, but {variable} is not set: set it, or do without a language model with "
        f"--set annotation.mode=Template (every caption is '{spec.concept.opening}') "
        "or --set annotation.mode=Existing (captions are beside the images)"
    )


def require_webhook_secret(profile: Profile) -> list[Signer]:
    """Read the secret that signs the profile's webhook.

    Returns:
        One signer for each secret; none if the profile has no webhook.

    Raises:
        UsageError: when the secret is not set or not valid.
    """
    if profile.webhook is None:
        return []
    from lora_operator.webhooks import WebhookError, parse_secrets

    text = os.environ.get(WEBHOOK_SECRET, "")
    if not text:
        raise UsageError(
            f"the profile has a webhook, but {WEBHOOK_SECRET} is not set: set it to the secret that signs the "
            "messages, or remove webhook from the profile"
        )
    try:
        return parse_secrets(text)
    except WebhookError as error:
        raise UsageError(f"{WEBHOOK_SECRET}: {error}") from None


def require_few(spec: JobSpec, images: Path) -> None:
    """Check that a folder has images, and no more than the job takes. More are no problem if the job skips some.

    Raises:
        UsageError: when the folder has no images, or more than the job takes.
    """
    from .new_job import captions_of

    count, limit = len(captions_of(images)), spec.dataset.max_images
    if count > limit and spec.dataset.on_bad_image is OnBadImage.FAIL:
        raise UsageError(
            f"{images} has {count} images, and the job takes {spec.dataset.min_images} to {limit}: "
            f"name a folder with fewer, or raise the limit with --set dataset.maxImages={count}"
        )


def require_gpu(spec: JobSpec) -> None:
    """Check that this machine has the GPUs of the job.

    Raises:
        MachineError: when the job needs more GPUs than PyTorch can use here.
    """
    needed = spec.resources.train.gpus
    if not needed:
        return
    available = count_gpus()
    if available < needed:
        missing = "no GPU" if not available else f"{available} of the {needed} GPUs of the job"
        raise MachineError(
            f"PyTorch can use {missing} on this machine: use a machine with an NVIDIA GPU and PyTorch for CUDA, "
            "or submit the job to a cluster with `lora submit`. A small model can be trained on the CPU with "
            "--set resources.train.gpus=0 --set training.mixedPrecision=fp32 --set training.optimizer=AdamW"
        )


def count_gpus() -> int:
    """Count the GPUs that PyTorch can use.

    A separate process asks PyTorch: imported here, it would occupy memory for the whole run.
    """
    ran = subprocess.run(
        [sys.executable, "-c", COUNT_GPUS], capture_output=True, text=True, check=False, timeout=120
    )
    return int(ran.stdout) if ran.stdout.strip().isdigit() else 0


def _all_captioned(spec: JobSpec, images: Path | None) -> bool:
    if images is None or spec.annotation.existing_captions != ExistingCaptions.KEEP:
        return False
    from lora_trainer.annotate.inspection import read_captions
    from lora_trainer.errors import StageError

    try:
        captions, _ = read_captions(images)
    except (StageError, OSError, ValueError):
        return False
    return all(text.strip() for text in captions.values())
