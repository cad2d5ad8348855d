"""Page that generates images with and without adapters, for several seeds, or in a grid of strengths and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import streamlit as st
from PIL import Image

from lora_api.manifest import Manifest

from ..annotate.tokens import TEXT_TOKENS, count_tokens, cut_to_tokens
from .adapters import fetch_adapter, fetch_embeddings
from .catalog import joined_opening, share_base_model, shared_token, title
from .checkpoints import embeddings_of, fetch_checkpoint
from .comparison import comparison_page
from .generation_request import AppliedAdapter, GenerationRequest
from .markup import escape_markdown
from .shared import catalog, checkpoints, image_generator, settings, show_errors, store

MAX_STRENGTH = 2.0
MAX_SEEDS = 4
STRENGTHS = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0]
COMPARE, GRID = "Compare", "Grid of strengths"
COMPARISON_WIDTH = 440
"""Width of the images before and after, in pixels. It fits the column."""
BASE = "Base model"


@dataclass(frozen=True)
class Choice:
    manifest: Manifest
    strength: float
    step: int | None = None
    """Step of a checkpoint; None for the published adapter."""

    @property
    def title(self) -> str:
        step = f" · step {self.step}" if self.step is not None else ""
        return f"{title(self.manifest)}{step}"


@dataclass(frozen=True)
class GeneratedImage:
    image: Image.Image
    caption: str
    prompt: str


@dataclass(frozen=True)
class Generated:
    """The images of one click."""

    mode: str
    """`COMPARE` or `GRID`."""
    rows: list[list[GeneratedImage]]
    """Images with the same seed. With `COMPARE`: the image with adapters, then that of the base model."""


def page() -> None:
    st.title("Generate")
    with show_errors():
        adapters = [manifest for manifest in catalog().adapters if manifest.base_model]
    if not adapters:
        st.info(
            "There is no finished adapter in the store yet. Adapters appear here when a job has succeeded."
        )
        return
    left, right = st.columns([2, 3], gap="large")
    with left:
        mode = st.segmented_control("Mode", [COMPARE, GRID], default=COMPARE, required=True, width="stretch")
        choices, strengths = _choose(adapters, mode)
        request, seeds = _build_request(choices)
        ready = bool(choices) and (mode == COMPARE or bool(strengths))
        clicked = st.button("Generate", type="primary", width="stretch", disabled=not ready)
    with right:
        if clicked:
            st.session_state.pop("generated", None)
            with show_errors():
                st.session_state["generated"] = _generate(mode, choices, strengths, request, seeds)
        if generated := st.session_state.get("generated"):
            _show(generated)
        else:
            st.caption("Images appear here. All images of a row have the same seed.")


def _choose(adapters: Sequence[Manifest], mode: str) -> tuple[list[Choice], list[float]]:
    """Let the user choose adapters and strengths.

    Returns:
        The adapters with their strengths, empty if the choice cannot be used; and the strengths of a grid.
    """
    usable = [manifest for manifest in adapters if settings().allows(manifest.base_model)]
    chosen = st.multiselect("Adapters", adapters, default=usable[:1], format_func=title)
    if not share_base_model(chosen):
        st.warning("These adapters were trained on different base models. Choose adapters of one base model.")
        return [], []
    for manifest in chosen:
        if not settings().allows(manifest.base_model):
            st.warning(
                escape_markdown(
                    f"The base model of {title(manifest)} is not in the profile {settings().profile!r}. Ask the "
                    "administrator to add it to the profile."
                )
            )
            return [], []
    if mode == GRID:
        # Each adapter is applied alone, so adapters of the same token cannot conflict.
        strengths = st.multiselect("Strengths", STRENGTHS, default=[0.0, 0.5, 1.0, 1.5])
        choices = [Choice(manifest, 1.0) for manifest in chosen]
        if len(chosen) == 1 and (kept := checkpoints(chosen[0])):
            steps = st.multiselect("Checkpoints", kept, default=kept, format_func="step {}".format)
            choices = [*(Choice(chosen[0], 1.0, step) for step in sorted(steps)), *choices]
        return choices, sorted(strengths)
    if word := shared_token(chosen):
        st.warning(
            escape_markdown(
                f"The token {word} has embeddings of its own in one of these adapters, and another adapter uses it too. "
                "Choose adapters of different tokens."
            )
        )
        return [], []
    choices = []
    for manifest in chosen:
        label = f"Strength of {title(manifest)}"
        st.text(label)
        strength = st.slider(
            label, 0.0, MAX_STRENGTH, 1.0, 0.05, key=manifest.adapter.uri, label_visibility="collapsed"
        )
        choices.append(Choice(manifest, strength))
    return choices, []


def _build_request(choices: Sequence[Choice]) -> tuple[GenerationRequest, list[int]]:
    """Show the inputs of a generation, and return the request for the first seed, and all seeds."""
    concepts = [choice.manifest.concept for choice in choices if choice.manifest.concept]
    rest = st.text_area("Prompt", placeholder="on a beach at sunset", height=80)
    prompt = ", ".join(filter(None, (joined_opening(concepts), rest)))
    st.markdown(f":small[Full prompt: {escape_markdown(prompt)}]")
    _warn_if_too_long(prompt)
    with st.expander("More"):
        negative = st.text_input("Negative prompt")
        _warn_if_too_long(negative)
        first, second = st.columns(2)
        seed = int(first.number_input("Seed", 0, 2**32 - 1 - MAX_SEEDS, 0))
        count = int(second.number_input("Number of seeds", 1, MAX_SEEDS, 1))
        steps = int(first.number_input("Steps", 1, 150, 25))
        guidance = float(second.number_input("Guidance", 1.0, 20.0, 5.0, 0.5))
    resolution = max((choice.manifest.resolution for choice in choices), default=0)
    seeds = [seed + number for number in range(count)]
    return GenerationRequest(prompt, negative, seed, steps, guidance, resolution), seeds


def _warn_if_too_long(text: str) -> None:
    """Warn of a text that is too long, with the part that the text encoders ignore."""
    count = count_tokens(text)
    if count > TEXT_TOKENS:
        ignored = text[len(cut_to_tokens(text)) :].strip(" ,;:")
        st.warning(
            escape_markdown(
                f"The text has {count} tokens. The model reads {TEXT_TOKENS} (77 with start and end) and ignores: "
                f"“{ignored}”. Shorten the prompt."
            )
        )


def _generate(
    mode: str,
    choices: Sequence[Choice],
    strengths: Sequence[float],
    request: GenerationRequest,
    seeds: Sequence[int],
) -> Generated:
    """Generate all images of a click, with one progress bar."""
    source = choices[0].manifest.base_model
    assert source is not None  # `page` offers only adapters with a base model
    folder = settings().cache / "adapters"
    applied = [_fetch(choice, folder) for choice in choices]
    # Rows of images to generate: the request, the adapters, and the caption of each image.
    plan: list[list[tuple[GenerationRequest, list[AppliedAdapter], str]]] = []
    for seed in seeds:
        seeded = request.with_seed(seed)
        if mode == GRID:
            for choice, adapter in zip(choices, applied, strict=True):
                plan.append(
                    [
                        (
                            seeded,
                            [replace(adapter, strength=value)],
                            f"{choice.title} · strength {value:g} · seed {seed}",
                        )
                        for value in strengths
                    ]
                )
        else:
            label = "With the adapter" if len(applied) == 1 else "With the adapters"
            plan.append([(seeded, applied, f"{label} · seed {seed}"), (seeded, [], f"{BASE} · seed {seed}")])
    generator = image_generator(source)
    total = sum(map(len, plan)) * request.steps
    finished = 0
    bar = st.progress(0.0, text="Generating")

    def after_step(done: int) -> None:
        bar.progress(
            min(1.0, (finished + done) / total), text=f"Generating: step {finished + done} of {total}"
        )

    rows = []
    for row in plan:
        images = []
        for seeded, adapters, label in row:
            image = generator.generate(seeded, adapters, after_step)
            finished += request.steps
            images.append(GeneratedImage(image, label, seeded.prompt))
        rows.append(images)
    bar.empty()
    return Generated(mode, rows)


def _fetch(choice: Choice, folder: Path) -> AppliedAdapter:
    """Return an adapter or that of a checkpoint, whose files are downloaded once."""
    bucket, manifest = store().output, choice.manifest
    path = fetch_adapter(bucket, manifest, folder)
    word = manifest.concept.token if manifest.concept else ""
    if choice.step is None:
        return AppliedAdapter(path, choice.strength, fetch_embeddings(bucket, manifest, folder), word)
    path = fetch_checkpoint(bucket, manifest, path, choice.step, folder)
    embeddings = embeddings_of(path) if manifest.embeddings else None
    return AppliedAdapter(path, choice.strength, embeddings, word)


def _show(generated: Generated) -> None:
    for row in generated.rows:
        for column, image in zip(st.columns(len(row)), row, strict=True):
            column.image(
                image.image,
                caption=escape_markdown(image.caption),
                width="stretch",
                alt=f"{image.caption}: {image.prompt}",
                output_format="PNG",
            )
        if generated.mode == COMPARE:
            adapted, base = row
            with st.expander("Before and after"):
                st.caption("Move the line: base model on the left, adapter on the right.")
                st.iframe(
                    comparison_page(base.image, adapted.image, COMPARISON_WIDTH),
                    height=COMPARISON_WIDTH * base.image.height // base.image.width,
                    alt="Base model and adapter, compared by a slider",
                )
