"""State shared by the pages: the store, the catalog, the loaded model and error display."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import streamlit as st
from PIL import Image

from lora_api.manifest import Manifest
from lora_api.profile import BaseModelSource

from ..errors import BadDataError, StageError
from ..store import ObjectMissingError, ObjectTooLargeError, Store
from .catalog import MAX_MANIFEST_BYTES, Catalog, read_catalog
from .checkpoints import list_checkpoints
from .jobs_api import JobsAccess, JobsApi, connect, user_token
from .markup import escape_markdown
from .settings import Settings, read_settings
from .start import LocalStart

if TYPE_CHECKING:
    from .image_generator import ImageGenerator

RETRIES = 2
"""Low, so that the page reports an unavailable store after a few seconds."""
THUMBNAIL = 512
"""Longer side of a thumbnail, in pixels."""
MAX_IMAGE_BYTES, MAX_PIXELS = 64 << 20, 50_000_000
"""Limits of an image that is decoded. A stage writes smaller ones."""


@contextmanager
def show_errors() -> Iterator[None]:
    """Show the message of an error, and stop the script of the page."""
    try:
        yield
    except StageError as error:
        st.error(escape_markdown(str(error)))
        st.stop()
    except ObjectMissingError as error:
        st.error(escape_markdown(f"{error.args[0]} is missing from the store"))
        st.stop()


@st.cache_resource
def settings() -> Settings:
    return read_settings()


@st.cache_resource
def store() -> Store:
    return Store(settings().store_access, retries=RETRIES)


@st.cache_resource
def started() -> dict[tuple[str, str], LocalStart]:
    """The jobs that the page has started on this machine, by namespace and name."""
    return {}


def jobs_api() -> JobsApi | None:
    """Connect to the Kubernetes API for the user of this session.

    Nothing that it reads is cached, because another user may have other permissions.

    Returns:
        None on one machine, without access, and before the user has entered a token.
    """
    access = settings().access
    if access == JobsAccess.NONE:
        return None
    return connect(access, user_token(st.context.headers) or st.session_state.get("token", ""))


def sign_in() -> None:
    """Ask for what the Kubernetes API needs: a token, unless a login proxy forwards one, and the namespace."""
    if settings().access == JobsAccess.NONE:
        return
    with st.sidebar:
        if settings().access == JobsAccess.USER and not user_token(st.context.headers):
            st.text_input(
                "Kubernetes token",
                type="password",
                key="token",
                help="For example from `kubectl create token`. It is kept in this session only.",
            )
        st.selectbox("Namespace", settings().namespaces, key="namespace")


@st.cache_data(ttl=10, show_spinner="Reading the store")
def catalog() -> Catalog:
    return read_catalog(store().output, read_once)


@st.cache_data(ttl=30, max_entries=200, show_spinner=False, hash_funcs={Manifest: lambda m: m.adapter.uri})
def checkpoints(manifest: Manifest) -> list[int]:
    """List the steps of an adapter's checkpoints."""
    return list_checkpoints(store().output, manifest)


@st.cache_data(max_entries=2000, show_spinner=False)
def read_once(key: str) -> bytes:
    """Read a manifest, which is written only once; empty if it is missing or too large."""
    try:
        return store().output.get(key, MAX_MANIFEST_BYTES)
    except (ObjectMissingError, ObjectTooLargeError):
        return b""


@st.cache_data(max_entries=1000, show_spinner=False)
def thumbnail(key: str) -> bytes | None:
    """Read an image and encode it as a small WebP; None if it is missing or not an image."""
    try:
        return shrink(store().output.get(key, MAX_IMAGE_BYTES))
    except (ObjectMissingError, BadDataError):
        return None


def shrink(data: bytes) -> bytes | None:
    """Encode an image as a small WebP; None if it is not an image of a stage, or too large."""
    small = io.BytesIO()
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        if image.width * image.height > MAX_PIXELS:
            return None
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.convert("RGB").save(small, "WEBP", quality=85)
    except Exception:  # decoders raise errors of many kinds for damaged data
        return None
    return small.getvalue()


@st.cache_resource(max_entries=1, show_spinner="Loading the base model")
def image_generator(source: BaseModelSource) -> ImageGenerator:
    """Load a base model. Only one is kept in memory."""
    from ..train.model.base_model import fetch_base_model
    from .image_generator import ImageGenerator

    return ImageGenerator(fetch_base_model(source, settings().cache, store().input))
