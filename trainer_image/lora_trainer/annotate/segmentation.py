"""Masks of subjects by a segmentation model, for images without a mask of their own.

The model is a CLIPSeg (Lueddecke and Ecker 2022, arXiv:2112.10003), which segments what a text names: here, the concept's
class. It runs on the CPU: the masks are part of the input hash, and results differ between kinds of GPUs. It needs torch
and transformers, which the training image contains and the annotation image does not.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_api.caption_rows import Box
from lora_api.reasons import Reason
from lora_api.stages import AnnotateConfig

from ..errors import BadConfigurationError, BadSetupError
from ..model_cache import provide_encoder
from ..store import Bucket
from .grabcut import NoSubjectError, check_share, pixel_window
from .masks import MaskMethod

log = logging.getLogger(__name__)

KIND = "clipseg"
"""The `model_type` of the models that can be used."""
THRESHOLD = 0.3
"""Probability above which a pixel belongs to the subject: that of the authors' results on PhraseCut."""


class Segmenter:
    """A segmentation model with a fixed prompt."""

    def __init__(self, folder: Path, prompt: str) -> None:
        """
        Args:
            folder: folder of a model that transformers loads, with weights in safetensors.
            prompt: name of the subject, for example `dog`.

        Raises:
            BadSetupError: ModelUnavailable, when torch or transformers is missing.
            BadConfigurationError: when the model cannot be loaded or is not a CLIPSeg.
        """
        try:
            import torch
            import transformers

            from ..pretrained import load, loading
        except ImportError as error:
            raise BadSetupError(
                f"masks by a model need the training image, which has {error.name}", Reason.MODEL_UNAVAILABLE
            ) from error
        transformers.utils.logging.disable_progress_bar()
        self._torch = torch
        self._prompt = prompt
        what = "the segmentation model of the profile"
        with loading(what):
            kind = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
        if kind != KIND:
            raise BadConfigurationError(
                f"{what} is of the kind {kind!r}: name a CLIPSeg model, for example CIDAS/clipseg-rd64-refined"
            )
        model = load(
            transformers.CLIPSegForImageSegmentation, folder, what, use_safetensors=True, dtype=torch.float32
        )
        with loading(what):
            self._processor: Any = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        self._model: Any = model.eval()

    def mask(self, image: Image.Image, region: Box) -> Image.Image:
        """Make the mask of an image's subject.

        Args:
            image: RGB, upright.
            region: the part of the image that is trained on.

        Returns:
            a greyscale image of the same size, white where the subject is.

        Raises:
            NoSubjectError: when the model fails, or finds nothing or nearly everything.
        """
        try:
            marked = self._probabilities(image) > THRESHOLD
        except (RuntimeError, ValueError) as error:
            log.warning("the segmentation model failed", exc_info=True)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise NoSubjectError(f"the segmentation model failed: {reason[:200]}") from error
        part = marked[pixel_window(region, image.size)]
        if not part.any():
            raise NoSubjectError(f"the segmentation model found no {self._prompt!r} in it")
        check_share(part, "the segmentation model")
        return Image.fromarray(marked.astype(np.uint8) * 255)

    def _probabilities(self, image: Image.Image) -> NDArray[np.float32]:
        """Return the probability of each pixel of an image: float32, (height, width).

        As transformers' `post_process_semantic_segmentation` of models with one class, probabilities are resized, not
        logits.

        Raises:
            ValueError: when the model returns values that are not finite.
        """
        torch = self._torch
        inputs = self._processor(
            text=[self._prompt], images=[image], padding=True, truncation=True, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = self._model(**inputs).logits
            if not torch.isfinite(logits).all():
                raise ValueError("it returned values that are not finite")
            resized = torch.nn.functional.interpolate(
                logits.sigmoid().reshape(1, 1, *logits.shape[-2:]),
                size=(image.height, image.width),
                mode="bilinear",
                align_corners=False,
            )
        return np.asarray(resized[0, 0].numpy(), dtype=np.float32)


def model_masks(config: AnnotateConfig, bucket: Bucket) -> MaskMethod:
    """Return the method that makes masks by the profile's segmentation model.

    The model is fetched and loaded for the first image without a mask of its own.

    Raises:
        BadConfigurationError: when the profile has no segmentation model.
    """
    source = config.segmentation
    if source is None:
        raise BadConfigurationError(
            "annotation.masks is Model, and the profile has no segmentation model: add `segmentation` to the profile"
        )

    @cache
    def segmenter() -> Segmenter:
        folder = provide_encoder(
            source,
            bucket,
            Path(config.cache_dir),
            prefetched=config.prefetched,
            what="segmentation model",
        )
        return Segmenter(folder, prompt_of(config.spec.concept.class_name))

    return lambda image, region: segmenter().mask(image, region)


def prompt_of(class_name: str) -> str:
    """Return a class as a model's prompt: its words with spaces between them."""
    return " ".join(class_name.replace("_", " ").split())
