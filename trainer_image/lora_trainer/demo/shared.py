"""What the pages share: the store, the catalog, loaded models, and plain words for what goes wrong."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import streamlit as st
from PIL import Image

from lora_api.profile import BaseModelSource

from ..errors import StepError
from ..store import ObjectMissingError, Store
from .catalog import Catalog, read_catalog
from .settings import Settings, read_settings

if TYPE_CHECKING:
    from .painter import Painter

RETRIES = 2
"""A person waits for an answer: soon after the store is away the page says so."""
THUMBNAIL = 512
"""Longer side, in pixels."""


@contextmanager
def plainly() -> Iterator[None]:
    """Show a failure as its message and end the page there."""
    try:
        yield
    except StepError as error:
        st.error(str(error), icon=":material/error:")
        st.stop()
    except ObjectMissingError as error:
        st.error(f"{error.args[0]} is gone from the store", icon=":material/error:")
        st.stop()


@st.cache_resource
def settings() -> Settings:
    return read_settings()


@st.cache_resource
def store() -> Store:
    return Store(settings().access, retries=RETRIES)


@st.cache_data(ttl=10, show_spinner="Looking into the store")
def catalog() -> Catalog:
    return read_catalog(store().output, read_once)


@st.cache_data(max_entries=2000, show_spinner=False)
def read_once(key: str) -> bytes:
    """A small object that is never written again."""
    return store().output.get(key)


@st.cache_data(max_entries=1000, show_spinner=False)
def thumbnail(key: str) -> bytes:
    """A picture of the store, small enough to send many."""
    picture = Image.open(io.BytesIO(store().output.get(key)))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    small = io.BytesIO()
    picture.convert("RGB").save(small, "WEBP", quality=85)
    return small.getvalue()


@st.cache_resource(max_entries=1, show_spinner="Loading the base model")
def painter(source: BaseModelSource) -> Painter:
    """The one base model that is loaded; another one takes its place."""
    from ..train.base_model import fetch_base_model
    from .painter import Painter

    return Painter(fetch_base_model(source, settings().cache, store().input))
