"""Warnings about jobs that are valid but probably not what their author wants."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_api.job import JobSpec, Training
from lora_api.rules import advice


def find_hints(spec: JobSpec) -> Iterator[str]:
    """Yield a warning for each setting that has no effect or often gives a bad result."""
    from lora_trainer.annotate.tokens import TEXT_TOKENS, count_tokens
    from lora_trainer.annotate.words import find_token_problem
    from lora_trainer.whole_words import has_word

    # A recipe gives more steps for more images. So what has no effect with the most images has none with fewer.
    for message in advice(spec.with_recipe(spec.dataset.max_images)):
        yield f"spec.{message}"
    for path, prompt in _prompts(spec.training):
        if (count := count_tokens(prompt)) > TEXT_TOKENS:
            yield f"spec.{path}: has {count} CLIP tokens; what is beyond {TEXT_TOKENS} is not read"
    prior = spec.training.prior_preservation
    if prior.enabled and has_word(prior.class_prompt, spec.concept.token):
        yield (
            f"spec.training.priorPreservation.classPrompt: has the token {spec.concept.token}, so that the token is trained "
            "to show the class too; leave the token out"
        )
    if problem := find_token_problem(spec.concept.token, spec.concept.class_name):
        yield f"spec.concept.token: {problem}"
    prefix = spec.dataset.prefix
    if any(part in (".", "..") for part in prefix.split("/")) or re.match(r"[A-Za-z]:\\|~", prefix):
        yield (
            f"spec.dataset.prefix: {prefix!r} looks like a path on this machine; it is a key prefix in the store's "
            "input bucket, in which '.' and '..' have no meaning. `lora run --images FOLDER` uploads a folder"
        )


def _prompts(training: Training) -> Iterator[tuple[str, str]]:
    """Yield the prompts of a job with their fields."""
    for number, prompt in enumerate(training.preview.prompts):
        yield f"training.preview.prompts[{number}]", prompt
    yield "training.priorPreservation.classPrompt", training.prior_preservation.class_prompt
