"""The page on which a person reads, corrects and approves captions."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

import streamlit as st

from lora_api.keys import JobKeys
from lora_api.manifest import sha256_hex

from ..annotate.desk import approval_arguments, push_captions, read_captions
from ..annotate.lint import check_captions, usual_trigger
from ..annotate.review import MAX_CAPTION_CHARACTERS, CaptionRow, read_rows
from ..errors import BadSetupError
from .approval import approve, read_run, waits
from .shared import catalog, plainly, settings, store, thumbnail


def page() -> None:
    st.title("Captions")
    with plainly():
        jobs = catalog().captioned
    if not jobs:
        st.info("No job has captions yet.")
        return
    keys = st.selectbox("Job", jobs, format_func=lambda k: f"{k.namespace}/{k.name} · {k.uid[:8]}")
    with plainly():
        data = read_captions(store().output, keys)
        rows = read_rows(data)
        _state(keys, data)
        edited = _edit(keys, rows)
        _lint(edited)
        _act(keys, data, rows, edited)


def _state(keys: JobKeys, data: bytes) -> None:
    resource = read_run(settings().runs, keys)
    if resource is None:
        return
    approved = resource["spec"]["annotation"].get("approvedCaptions", "").removeprefix("sha256:")
    if waits(resource) and approved != sha256_hex(data):
        st.warning("This job waits for your approval.", icon=":material/hourglass:")
    elif approved == sha256_hex(data):
        st.success("These captions are approved.", icon=":material/check:")


def _edit(keys: JobKeys, rows: Sequence[CaptionRow]) -> list[CaptionRow]:
    """Every image beside its caption, in a box that can be edited; the rows as they stand in the boxes."""
    edited = []
    for row in rows:
        picture, words = st.columns([1, 4], vertical_alignment="center")
        picture.image(thumbnail(keys.image_named(row.file_name)), width="stretch", alt=row.file_name)
        text = words.text_area(
            row.file_name,
            row.text,
            max_chars=MAX_CAPTION_CHARACTERS,
            height=90,
            key=f"{keys.uid}/{row.file_name}",
        )
        edited.append(row.model_copy(update={"text": text}))
    return edited


def _lint(rows: Sequence[CaptionRow]) -> None:
    captions = {row.file_name: row.text for row in rows}
    findings = check_captions(captions, usual_trigger(captions))
    if findings:
        st.text("\n".join(f"{found.file_name}: {found.problem}: {found.message}" for found in findings))


def _act(keys: JobKeys, data: bytes, rows: Sequence[CaptionRow], edited: Sequence[CaptionRow]) -> None:
    changed = list(rows) != list(edited)
    save, approves = st.columns(2)
    if save.button("Save", disabled=not changed, width="stretch", icon=":material/save:"):
        lines = "".join(json.dumps(row.model_dump(), ensure_ascii=False) + "\n" for row in edited)
        push_captions(store().output, keys, lines.encode())
        st.toast("Saved")
        st.rerun()
    if approves.button("Approve", type="primary", disabled=changed, width="stretch", icon=":material/check:"):
        _approve(keys, sha256_hex(data))
    st.caption(f"sha256:{sha256_hex(data)}" if not changed else "Save your changes before you approve them.")


def _approve(keys: JobKeys, digest: str) -> None:
    try:
        st.success(approve(settings().runs, keys, digest), icon=":material/check:")
    except BadSetupError as error:
        st.warning(f"This page may not change the job ({error}). Somebody who may approves with:")
        st.code(shlex.join(["kubectl", *approval_arguments(keys.namespace, keys.name, digest)]), "shell")
