"""Page to read, edit and approve captions."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

import streamlit as st

from lora_api.keys import JobKeys
from lora_api.manifest import sha256_hex

from ..annotate.lint import Finding, check_captions, usual_token
from ..annotate.review import MAX_CAPTION_CHARACTERS, CaptionRow, read_rows
from ..annotate.review_store import approval_arguments, push_captions, read_captions
from ..annotate.rules import Problem
from ..errors import BadSetupError
from .approval import approve, awaits_approval, read_run
from .catalog import job_keys
from .markup import escape_markdown
from .shared import catalog, settings, show_errors, store, thumbnail


def page() -> None:
    st.title("Captions")
    with show_errors():
        jobs = catalog().captioned
    if not jobs:
        st.info("No job has captions yet.")
        return
    keys = st.selectbox("Job", jobs, format_func=lambda k: f"{k.namespace}/{k.name} · {k.uid[:8]}")
    with show_errors():
        data = read_captions(store().output, keys)
        rows = read_rows(data)
        _show_state(keys, data)
        token, class_name = _concept(keys, rows)
        edited, findings = _edit(keys, rows, token, class_name)
        if settings().read_only:
            st.info("This page is read-only. `lora captions` edits and approves captions.")
        else:
            _save_or_approve(keys, data, rows, edited, findings)


def _show_state(keys: JobKeys, data: bytes) -> None:
    resource = read_run(settings().runs, keys)
    if resource is None:
        return
    approved = resource["spec"].get("annotation", {}).get("approvedCaptions", "").removeprefix("sha256:")
    if awaits_approval(resource) and approved != sha256_hex(data):
        st.warning("This job is waiting for your approval.")
    elif approved == sha256_hex(data):
        st.success("These captions are approved.")


def _concept(keys: JobKeys, rows: Sequence[CaptionRow]) -> tuple[str, str]:
    """Find the token and the class.

    They come from the local job or from a manifest of the job. Otherwise the token is the one that most captions
    have, and the class is empty.
    """
    resource = read_run(settings().runs, keys)
    if resource is not None:
        concept = resource["spec"].get("concept", {})
        return str(concept.get("token", "")), str(concept.get("className", ""))
    for manifest in catalog().adapters:
        if job_keys(manifest) == keys:
            return (manifest.concept.token, manifest.concept.class_name) if manifest.concept else ("", "")
    return usual_token({row.file_name: row.text for row in rows}), ""


def _edit(
    keys: JobKeys, rows: Sequence[CaptionRow], token: str, class_name: str
) -> tuple[list[CaptionRow], list[Finding]]:
    """Show each image beside a text box with its caption, and the problems below the box.

    Returns:
        The captions as edited, and their problems.
    """
    edited, places = [], {}
    for row in rows:
        image_column, text_column = st.columns([1, 4], vertical_alignment="center")
        image = thumbnail(keys.image_named(row.file_name))
        if image:
            image_column.image(image, width="stretch", alt=row.file_name)
        else:
            image_column.warning("The image is missing.")
        # A visible label would be rendered as Markdown. This one is for screen readers only, and stays plain text.
        text_column.text(row.file_name)
        text = text_column.text_area(
            row.file_name,
            row.text,
            label_visibility="collapsed",
            max_chars=MAX_CAPTION_CHARACTERS,
            height=90,
            key=f"{keys.uid}/{row.file_name}",
            disabled=settings().read_only,
        )
        places[row.file_name] = text_column.empty()
        edited.append(row.model_copy(update={"text": text}))
    findings = check_captions({row.file_name: row.text for row in edited}, token, class_name)
    for name, place in places.items():
        messages = [finding.message for finding in findings if finding.file_name == name]
        if messages:
            place.warning(escape_markdown("; ".join(messages)))
    return edited, findings


def _save_or_approve(
    keys: JobKeys,
    data: bytes,
    rows: Sequence[CaptionRow],
    edited: Sequence[CaptionRow],
    findings: Sequence[Finding],
) -> None:
    """Show the buttons that save and approve captions, and do what was clicked.

    Args:
        data: metadata.jsonl in the store. Its sha256 is what is approved.
    """
    changed = list(rows) != list(edited)
    digest = sha256_hex(data)
    save, approve_button = st.columns(2)
    if save.button("Save", disabled=not changed, width="stretch"):
        lines = "".join(json.dumps(row.model_dump(), ensure_ascii=False) + "\n" for row in edited)
        push_captions(store().output, keys, lines.encode())
        st.toast("Saved")
        st.rerun()
    without = [finding.file_name for finding in findings if finding.problem == Problem.MISSING_TOKEN]
    if approve_button.button("Approve", type="primary", disabled=changed, width="stretch"):
        if without:
            # Each interaction runs the script again, so the question must be remembered until it is answered.
            st.session_state["unconfirmed"] = digest
        else:
            _approve(keys, digest)
    if st.session_state.get("unconfirmed") == digest and without and not changed:
        _confirm(keys, digest, without)
    st.caption(f"sha256:{digest}" if not changed else "Save your changes before you approve them.")


def _confirm(keys: JobKeys, digest: str, without: Sequence[str]) -> None:
    """Ask for a confirmation before captions without the token are approved.

    Args:
        digest: sha256 of the captions.
        without: file names of the images whose captions lack the token.
    """
    names = escape_markdown(", ".join(without))
    st.warning(
        f"These captions do not contain the token: {names}. Without it, the adapter learns that the class always "
        "looks like your images, and prompts cannot call the concept up."
    )
    yes, no = st.columns(2)
    if yes.button("Approve without the token", width="stretch"):
        del st.session_state["unconfirmed"]
        _approve(keys, digest)
    if no.button("Cancel", width="stretch"):
        del st.session_state["unconfirmed"]
        st.rerun()


def _approve(keys: JobKeys, digest: str) -> None:
    try:
        st.success(approve(settings().runs, keys, digest))
    except BadSetupError as error:
        st.warning(escape_markdown(f"This page cannot change the job ({error}). To approve, run:"))
        st.code(shlex.join(["kubectl", *approval_arguments(keys.namespace, keys.name, digest)]), "shell")
