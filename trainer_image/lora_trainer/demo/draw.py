"""The page that draws: one prompt, with and without the adapter, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st
from PIL import Image
from streamlit.delta_generator import DeltaGenerator

from lora_api.manifest import Manifest

from .adapters import fetch_adapter
from .catalog import drawable_together, title
from .shared import catalog, painter, plainly, settings, store
from .wish import Layer, Wish

if TYPE_CHECKING:
    from .painter import Painter

MOST_WEIGHT = 2.0


@dataclass(frozen=True)
class Choice:
    manifest: Manifest
    weight: float


@dataclass(frozen=True)
class Drawn:
    picture: Image.Image
    caption: str
    prompt: str


def page() -> None:
    st.title("Draw")
    with plainly():
        adapters = [manifest for manifest in catalog().adapters if manifest.base_model]
    if not adapters:
        st.info("There is no finished adapter in the store yet. Run a job, and it will be here.")
        return
    left, right = st.columns([2, 3], gap="large")
    with left:
        choices = _choose(adapters)
        wish = _wish(choices)
        asked = st.button("Draw", type="primary", width="stretch", disabled=not choices)
    with right:
        if asked:
            st.session_state.pop("drawn", None)
            with plainly():
                st.session_state["drawn"] = _draw(choices, wish)
        elif drawn := st.session_state.get("drawn"):
            for column, picture in zip(st.columns(2), drawn, strict=True):
                _show(column, picture)
        else:
            st.caption("The picture with the adapter and the base model's, from the same noise, appear here.")


def _choose(adapters: Sequence[Manifest]) -> list[Choice]:
    chosen = st.multiselect("Adapters", adapters, default=adapters[:1], format_func=title)
    if not drawable_together(chosen):
        st.warning("These were trained on different base models: only adapters of one can be blended.")
        return []
    return [
        Choice(
            manifest,
            st.slider(
                f"Strength of {title(manifest)}", 0.0, MOST_WEIGHT, 1.0, 0.05, key=manifest.adapter.uri
            ),
        )
        for manifest in chosen
    ]


def _wish(choices: Sequence[Choice]) -> Wish:
    concepts = [choice.manifest.concept for choice in choices if choice.manifest.concept]
    # an adapter of each attempt has the same trigger
    triggers = " and ".join(dict.fromkeys(f"{concept.token} {concept.class_name}" for concept in concepts))
    rest = st.text_area("Prompt", placeholder="on a beach at sunset", height=80)
    prompt = f"a photo of {triggers}{', ' if rest else ''}{rest}"
    st.caption(f"Drawn: :violet[{_escape(prompt)}]")
    with st.expander("More"):
        negative = st.text_input("Negative prompt")
        first, second, third = st.columns(3)
        seed = int(first.number_input("Seed", 0, 2**32 - 1, 0))
        steps = int(second.number_input("Steps", 1, 150, 25))
        guidance = float(third.number_input("Guidance", 1.0, 20.0, 5.0, 0.5))
    resolution = max((choice.manifest.resolution for choice in choices), default=0)
    return Wish(prompt, negative, seed, steps, guidance, resolution)


def _draw(choices: Sequence[Choice], wish: Wish) -> list[Drawn]:
    """With the adapters, then without."""
    source = choices[0].manifest.base_model
    assert source is not None  # only such adapters can be chosen
    folder = settings().cache / "adapters"
    layers = [Layer(fetch_adapter(store().output, c.manifest, folder), c.weight) for c in choices]
    brush = painter(source)
    with_adapters = "With the adapter" if len(layers) == 1 else "With the adapters"
    left, right = st.columns(2)
    return [
        _draw_one(left, brush, wish, layers, with_adapters),
        _draw_one(right, brush, wish, [], "Without: the base model"),
    ]


def _draw_one(
    column: DeltaGenerator, brush: Painter, wish: Wish, layers: Sequence[Layer], caption: str
) -> Drawn:
    place = column.empty()
    bar = place.progress(0.0, text=caption)

    def after_step(done: int) -> None:
        bar.progress(done / wish.steps, text=f"{caption}: {done} of {wish.steps}")

    drawn = Drawn(brush.draw(wish, layers, after_step), f"{caption} · seed {wish.seed}", wish.prompt)
    _show(place, drawn)
    return drawn


def _show(place: DeltaGenerator, drawn: Drawn) -> None:
    alt = f"{drawn.caption}: {drawn.prompt}"
    place.image(drawn.picture, caption=drawn.caption, width="stretch", alt=alt, output_format="PNG")


def _escape(text: str) -> str:
    """Text that Markdown takes as it is."""
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]()#+-.!|<>$:~" else sign for sign in text)
