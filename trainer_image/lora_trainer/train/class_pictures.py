"""Pictures of the class that the base model draws, for prior preservation (DreamBooth, arXiv:2208.12242, 3.2).

The store keeps them: a picture depends on the base model, the prompt, the size, the guidance and the seed, and on its
number, so that jobs of one namespace share them and a job that wants more draws only what is missing.
"""

from __future__ import annotations

import io
import logging

from lora_api.job import Concept, Training
from lora_api.keys import class_images
from lora_api.manifest import canonical_json, sha256_hex

from ..store import Bucket, ObjectMissingError
from .dataset import Picture
from .drawing import Painter
from .draws import CLASS, generator_for
from .encode import Encoders

log = logging.getLogger(__name__)
INFERENCE_STEPS = 25


def class_prompt(training: Training, concept: Concept) -> str:
    return training.prior_preservation.class_prompt or f"a photo of {concept.class_name}"


def provide_class_pictures(
    bucket: Bucket, namespace: str, prompt: str, training: Training, encoders: Encoders
) -> list[Picture]:
    """`numClassImages` pictures of the class, from the store or drawn now and stored."""
    guidance = float(training.prior_preservation.guidance_scale)
    what = {
        "model": encoders.model.identity,
        "prompt": prompt,
        "resolution": training.resolution,
        "seed": training.seed,
        "precision": str(encoders.dtype),
        "inferenceSteps": INFERENCE_STEPS,
        "guidance": guidance,
    }
    prefix = class_images(namespace, sha256_hex(canonical_json(what)))
    painter: Painter | None = None
    pictures = []
    for index in range(training.prior_preservation.num_class_images):
        key = f"{prefix}{index:05d}.png"
        try:
            data = bucket.get(key)
        except ObjectMissingError:
            if painter is None:
                log.info("drawing class pictures: %s", prompt)
                text = encoders.texts([prompt])[prompt]
                unet = encoders.model.unet(encoders.dtype).to(encoders.device)
                painter = Painter(encoders.model, unet)
            drawn = painter.draw(
                text,
                resolution=training.resolution,
                inference_steps=INFERENCE_STEPS,
                guidance=guidance,
                chance=generator_for(training.seed, CLASS, "picture", index),
            )
            out = io.BytesIO()
            drawn.save(out, "png")
            data = out.getvalue()
            bucket.put(key, data, "image/png")
        pictures.append(Picture(key, data, prompt, crop=None))
    return pictures
