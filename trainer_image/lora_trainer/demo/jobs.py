"""The page of finished jobs, each with its pictures and its report."""

from __future__ import annotations

import streamlit as st

from lora_api.manifest import Manifest
from lora_api.status import PreviewStatus

from .catalog import title
from .shared import catalog, plainly, store, thumbnail

COLUMNS = 3
REPORT_HEIGHT = 900


def page() -> None:
    st.title("Jobs")
    with plainly():
        manifests = catalog().adapters
    if not manifests:
        st.info("No job has finished yet.")
        return
    opened = st.query_params.get("report")
    if found := next((m for m in manifests if m.adapter.report_key == opened and opened), None):
        _report(found)
        return
    columns = st.columns(COLUMNS)
    for index, manifest in enumerate(manifests):
        with columns[index % COLUMNS], st.container(border=True), plainly():
            _card(manifest)


def _card(manifest: Manifest) -> None:
    last = _last_preview(manifest)
    if last:
        st.image(thumbnail(last.key), width="stretch", alt=last.prompt)
    name = f"{manifest.concept.token} {manifest.concept.class_name}" if manifest.concept else manifest.name
    st.subheader(name, anchor=False)
    st.caption(f"{manifest.namespace}/{manifest.name} · {manifest.uid[:8]} · attempt {manifest.attempt}")
    st.text(f"{manifest.steps} steps, loss {manifest.first_loss:.4f} → {manifest.final_loss:.4f}")
    if manifest.adapter.report_key and st.button(
        "Report", key=manifest.adapter.report_key, width="stretch", icon=":material/article:"
    ):
        st.query_params["report"] = manifest.adapter.report_key
        st.rerun()


def _report(manifest: Manifest) -> None:
    back, download = st.columns(2)
    if back.button("All jobs", icon=":material/arrow_back:"):
        del st.query_params["report"]
        st.rerun()
    with plainly():
        html = store().output.get(manifest.adapter.report_key).decode()
    download.download_button(
        "Download", html, f"{manifest.name}.html", "text/html", icon=":material/download:"
    )
    st.caption(title(manifest))
    st.iframe(html, height=REPORT_HEIGHT, alt=f"Report of {manifest.name}")


def _last_preview(manifest: Manifest) -> PreviewStatus | None:
    """The first prompt's picture after the last step."""
    latest = [preview for preview in manifest.previews if preview.step == manifest.previews[-1].step]
    return latest[0] if latest else None
