"""Page of jobs. Each has its phase, a preview, its report and its files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import streamlit as st

from lora_api.keys import file_name_of
from lora_api.manifest import FileEntry, Manifest, sha256_hex
from lora_api.status import Phase, PreviewStatus

from ..errors import BadDataError
from .catalog import title
from .job_list import JobEntry, list_jobs
from .jobs_api import JobsAccess, readable_jobs
from .markup import escape_markdown, sandboxed_page
from .shared import catalog, jobs_api, settings, show_errors, sign_in, store, thumbnail

COLUMNS = 3
REFRESH_SECONDS = 5
MAX_SHOWN = 60
"""Number of jobs above which there is a search."""
REPORT_HEIGHT = 900
"""Height of the frame, in pixels, before `REPORT_STYLE` applies."""
REPORT_STYLE = """<style>
[data-testid=stMain] {overflow: hidden}
[data-testid=stMainBlockContainer] {padding-top: 4rem; padding-bottom: 0}
[data-testid=stMainBlockContainer] h1 {padding: 0}
[data-testid=stMain] iframe {height: calc(100dvh - 14rem)}
</style>"""
COLORS: dict[str, Literal["green", "red", "orange"]] = {
    Phase.SUCCEEDED: "green",
    Phase.FAILED: "red",
    Phase.AWAITING_APPROVAL: "orange",
}
"""Colors of phases; others are gray."""


def page() -> None:
    st.title("Jobs")
    with show_errors():
        sign_in()
        jobs = _read()
    if not jobs:
        st.info("There are no jobs yet. Start one on the page New job, or with `lora run`.")
        return
    opened = st.query_params.get("report")
    manifests = [manifest for job in jobs for manifest in job.manifests]
    if selected := next((m for m in manifests if m.adapter.report_key == opened and opened), None):
        _report(selected)
        return
    if settings().runs is None and settings().access == JobsAccess.NONE:
        st.caption(
            "This page has no access to the cluster: it shows published results only. "
            "`lora watch` shows running jobs."
        )
    if all(job.ended for job in jobs):
        _show(jobs)
    else:
        st.fragment(_refresh, run_every=REFRESH_SECONDS)()


def _refresh() -> None:
    """Show the jobs as they are now, until none runs."""
    with show_errors():
        jobs = _read()
    if all(job.ended for job in jobs):
        st.rerun()
    _show(jobs)


def _read() -> list[JobEntry]:
    return list_jobs(catalog(), settings().runs, _cluster_jobs())


def _show(jobs: Sequence[JobEntry]) -> None:
    shown = _choose(jobs)
    columns = st.columns(COLUMNS)
    for index, job in enumerate(shown):
        with columns[index % COLUMNS], st.container(border=True), show_errors():
            _card(job)
    if len(shown) < len(jobs):
        st.caption(f"{len(shown)} of {len(jobs)} jobs are shown.")


def _choose(jobs: Sequence[JobEntry]) -> Sequence[JobEntry]:
    """Let the user search among many jobs. Return at most `MAX_SHOWN`."""
    if len(jobs) <= MAX_SHOWN:
        return jobs
    words = st.text_input("Search", placeholder="Name, concept or phase").casefold().split()
    matches = [job for job in jobs if all(word in _searched_text(job) for word in words)]
    return matches[:MAX_SHOWN]


def _searched_text(job: JobEntry) -> str:
    return f"{job.heading} {_identity(job)} {job.phase} {job.reason}".casefold()


def _cluster_jobs() -> list[dict[str, Any]] | None:
    """List the jobs of the namespaces that the user may read; None on one machine and without access."""
    api = jobs_api()
    if api is None:
        return None
    resources, problems = readable_jobs(api, settings().namespaces)
    for problem in problems:
        st.warning(escape_markdown(problem))
    return resources


def _card(job: JobEntry) -> None:
    manifest = job.manifests[0] if job.manifests else None
    last = last_preview(manifest) if manifest else None
    image = thumbnail(last.key) if last else None
    if last and image:
        st.image(image, width="stretch", alt=last.prompt)
    st.subheader(escape_markdown(job.heading), anchor=False)
    st.caption(escape_markdown(_identity(job)))
    show_state(job)
    if manifest:
        st.text(f"{manifest.steps} steps, loss {manifest.first_loss:.4f} → {manifest.final_loss:.4f}")
        if manifest.adapter.report_key and st.button(
            "Report", key=manifest.adapter.report_key, width="stretch"
        ):
            st.query_params["report"] = manifest.adapter.report_key
            st.rerun()
        show_files(manifest)


def _identity(job: JobEntry) -> str:
    attempt = f" · attempt {job.manifests[0].attempt}" if job.manifests else ""
    return f"{job.keys.namespace}/{job.keys.name} · {job.keys.uid[:8]}{attempt}"


def show_state(job: JobEntry) -> None:
    """Show the phase, and the reason or the progress of a job that has not succeeded."""
    st.badge(escape_markdown(job.phase), color=COLORS.get(job.phase, "gray"))
    if job.phase != Phase.SUCCEEDED and (job.reason or job.message):
        st.text(f"{job.reason}: {job.message}" if job.reason and job.message else job.reason or job.message)
    if not job.manifests and job.progress:
        st.progress(job.percent, text=escape_markdown(job.progress))


def show_files(manifest: Manifest, prefix: str = "") -> None:
    """Show buttons that download the report and the adapter.

    Args:
        prefix: distinguishes the buttons from those of the same manifest elsewhere on the page.
    """
    for entry in manifest.files:
        if entry.key == manifest.adapter.report_key:
            st.download_button(
                "Download report",
                partial(_download, entry),
                file_name=f"{manifest.name}.html",
                mime="application/octet-stream",
                key=f"{prefix}download {entry.key}",
                width="stretch",
                on_click="ignore",
            )
        if entry.key.endswith(".safetensors"):
            name = file_name_of(entry.key)
            kind = "for ComfyUI and A1111" if "kohya" in name else "for diffusers"
            st.download_button(
                f"Download {kind} ({entry.bytes / 1e6:.1f} MB)",
                partial(_download, entry),
                file_name=f"{manifest.name}-{name}",
                mime="application/octet-stream",
                key=f"{prefix}{entry.key}",
                width="stretch",
                on_click="ignore",
            )


def _download(entry: FileEntry) -> bytes:
    """Read a published file and verify its sha256.

    Raises:
        BadDataError: if the file differs from what was published.
    """
    data = store().output.get(entry.key, entry.bytes)
    if sha256_hex(data) != entry.sha256:
        raise BadDataError(f"{entry.key} was changed after it was published (its sha256 differs)")
    return data


def _report(manifest: Manifest) -> None:
    """Show a report in the height of the window, so that the page itself does not scroll.

    A page that scrolls beside the frame hides its buttons, and Chromium may give a click after such a scroll to the
    sandboxed frame, which runs in another process.
    """
    st.html(REPORT_STYLE)
    if st.button("All jobs"):
        del st.query_params["report"]
        st.rerun()
    with show_errors():
        entry = next((file for file in manifest.files if file.key == manifest.adapter.report_key), None)
        if entry is None:
            raise BadDataError(
                f"the manifest of {manifest.namespace}/{manifest.name} does not list its report"
            )
        html = _download(entry).decode(errors="replace")
    st.caption(escape_markdown(title(manifest)))
    st.iframe(
        sandboxed_page(html, f"Report of {manifest.name}"),
        height=REPORT_HEIGHT,
        alt=f"Report of {manifest.name}",
    )


def last_preview(manifest: Manifest) -> PreviewStatus | None:
    """Return the preview of the first prompt after the last step; None without previews."""
    latest = [preview for preview in manifest.previews if preview.step == manifest.previews[-1].step]
    return latest[0] if latest else None
