"""Page that starts a job from uploaded photographs and follows it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import streamlit as st
import yaml

from lora_api.dataset import AnnotationMode
from lora_api.draft import draft_manifest, slug
from lora_api.job import JobSpec
from lora_api.status import Phase

from ..local_runs import AT_REST
from .job_list import INTERRUPTED, JobEntry, list_jobs
from .jobs import last_preview, show_files, show_state
from .markup import escape_markdown
from .shared import catalog, jobs_api, settings, show_errors, sign_in, started, store, thumbnail
from .start import LocalStart, find_start, read_manifest, start_in_cluster, start_locally
from .uploads import (
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    Upload,
    check_uploads,
    is_image,
    unreadable_images,
)

FEW, MANY = 5, 20
"""Numbers of photographs below and above which there is a warning."""
MAX_NAMED = 5
"""Number of files that a warning names."""
RESUMABLE = (Phase.SUSPENDED, Phase.AWAITING_APPROVAL, INTERRUPTED)
"""Phases in which the same command continues the job."""
REFRESH_SECONDS = 3
CAPTION_MODES = {
    AnnotationMode.TEMPLATE: "The same short caption for each photograph",
    AnnotationMode.EXISTING: "My own captions, uploaded beside the photographs",
    AnnotationMode.LLM: "A language model writes them",
}


def page() -> None:
    st.title("New job")
    with show_errors():
        sign_in()
    left, right = st.columns([3, 2], gap="large")
    with left:
        _form()
    with right:
        _follow()


def _form() -> None:
    chosen = st.file_uploader(
        "Photographs of one thing, 5 to 20, and captions if you have some",
        type=[suffix[1:] for suffix in IMAGE_SUFFIXES + CAPTION_SUFFIXES],
        accept_multiple_files=True,
    )
    files = [Upload(file.name, file.getvalue()) for file in chosen]
    images = sum(is_image(file.name) for file in files)
    if files and not FEW <= images <= MANY:
        st.warning(f"{images} photographs: {FEW} to {MANY} give the best result.")
    if unreadable := unreadable_images(files):
        names = ", ".join(unreadable[:MAX_NAMED]) + (", ..." if len(unreadable) > MAX_NAMED else "")
        st.warning(
            escape_markdown(
                f"Not images, although they are named so: {names}. Remove them, or the job fails."
            )
        )
    first, second = st.columns(2)
    token = first.text_input(
        "Token", placeholder="CUS", help="A rare word that will call the thing up in prompts."
    )
    class_name = second.text_input("Class", placeholder="backpack", help="The ordinary noun for the thing.")
    manifest = _manifest(token.strip(), class_name.strip(), files)
    ready = bool(images and token.strip() and class_name.strip())
    if st.button("Train", type="primary", width="stretch", disabled=not ready):
        with show_errors():
            _start(manifest, files)
    if not ready:
        st.caption("Choose photographs, and fill in the token and the class.")


def _manifest(token: str, class_name: str, files: Sequence[Upload]) -> str:
    """Show the further settings and the manifest that follows from them. Return the manifest, as edited."""
    profile = settings()
    with st.expander("Settings"):
        first, second = st.columns(2)
        name = first.text_input("Name", placeholder=slug(f"{token} {class_name}") or "my-job")
        steps = second.number_input("Steps", 1, 1_000_000, None, placeholder="the job's default")
        captioned = any(not is_image(file.name) for file in files)
        modes = [mode for mode in CAPTION_MODES if mode != AnnotationMode.LLM or profile.has_llm]
        index = modes.index(AnnotationMode.EXISTING) if captioned else 0
        mode = first.selectbox("Captions", modes, index, format_func=CAPTION_MODES.__getitem__)
        default = JobSpec.model_fields["base_model"].default
        models = sorted(profile.models, key=lambda model: (model != default, model))
        model = second.selectbox("Base model", models)
    document = draft_manifest(
        slug(name) or slug(f"{token} {class_name}") or "my-job",
        token or "CUS",
        class_name or "thing",
        mode,
        int(steps) if steps else None,
    )
    if model != default:
        document["spec"]["baseModel"] = model
    if profile.run is None and profile.profile != "default":
        document["spec"]["profile"] = profile.profile
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    with st.expander("Manifest"):
        st.caption("Every field of a job can be set here. A change above replaces what is written here.")
        # The key changes with the draft, so that the box shows the new draft.
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        return st.text_area("Manifest", text, height=360, key=f"manifest {key}", label_visibility="collapsed")


def _start(manifest: str, files: Sequence[Upload]) -> None:
    document, checked = read_manifest(manifest), check_uploads(files)
    name = document["metadata"]["name"]
    command, uploads = settings().run, settings().uploads
    if command is not None and uploads is not None:
        namespace = document["metadata"].get("namespace", "default")
        known = started().get((namespace, name))
        if known is not None and known.running:
            st.warning(escape_markdown(f"{name} is running. Wait for its end, or choose another name."))
            return
        started().pop((namespace, name), None)  # the order is that of the starts
        started()[namespace, name] = start_locally(command, uploads, document, checked)
    else:
        api = jobs_api()
        if api is None:
            st.warning("Enter your Kubernetes token first.")
            return
        namespace = st.session_state["namespace"]
        start_in_cluster(api, store().input, namespace, document, checked)
    st.session_state["job"] = f"{namespace}/{name}"


@st.fragment(run_every=REFRESH_SECONDS)
def _follow() -> None:
    """Show the state of the job that was started last, and its files at the end."""
    # The address keeps the job when the page is reloaded. Other pages drop it from there, but not from the session.
    current = st.session_state.get("job") or st.query_params.get("job") or _last_started()
    namespace, _, name = current.partition("/")
    if not name:
        st.caption("The progress and the finished adapter appear here.")
        return
    if st.query_params.get("job") != current:
        st.query_params["job"] = current
    st.subheader(escape_markdown(name), anchor=False)
    with show_errors():
        process, entry = _started(namespace, name), _find(name, namespace)
        if process is not None and _stop_or_resume((namespace, name), process, entry):
            return
        # In a phase that is none of `AT_REST`, a `lora run` that has ended has failed, and its output says why.
        if entry is None or (process is not None and process.ended and entry.phase not in AT_REST):
            _show_output(process)
            return
        show_state(entry)
        if entry.phase == Phase.FAILED and process is not None:
            _show_output(process)
        if entry.phase == Phase.SUCCEEDED and entry.manifests:
            manifest = entry.manifests[0]
            preview = last_preview(manifest)
            if preview and (image := thumbnail(preview.key)):
                st.image(image, caption=escape_markdown(preview.prompt), alt=preview.prompt)
            show_files(manifest, prefix="started")


def _stop_or_resume(job: tuple[str, str], process: LocalStart, entry: JobEntry | None) -> bool:
    """Show a button that stops the job, or one that resumes a stopped one. Return whether the job was resumed."""
    if process.running:
        if st.button("Stop", width="stretch", help="Saves a checkpoint. The job can be resumed."):
            process.stop()
            st.caption("Stopping")
    elif process.killed or (entry is not None and entry.phase in RESUMABLE):
        label = "Continue" if entry is not None and entry.phase == Phase.AWAITING_APPROVAL else "Resume"
        if st.button(label, width="stretch"):
            started()[job] = process.run()
            st.text("Starting")
            return True
    return False


def _last_started() -> str:
    """Return the namespace and name of the job that was started last on this machine; empty if there is none."""
    return "/".join(next(reversed(started()), ()))


def _started(namespace: str, name: str) -> LocalStart | None:
    """Return the `lora run` of a job that this page has started, also before it was restarted itself."""
    command, uploads = settings().run, settings().uploads
    known = started().get((namespace, name))
    if known is None and command is not None and uploads is not None:
        return find_start(command, uploads, namespace, name)
    return known


def _find(name: str, namespace: str) -> JobEntry | None:
    """Find a job by its name; None until it is listed."""
    api = jobs_api()
    if api and namespace not in settings().namespaces:
        return None  # the address names another one
    resources = api.list_jobs(namespace) if api else None
    jobs = list_jobs(catalog(), settings().runs, resources)
    return next((job for job in jobs if (job.keys.namespace, job.keys.name) == (namespace, name)), None)


def _show_output(process: LocalStart | None) -> None:
    """Show the output of a `lora run` that has ended, or what the page is waiting for."""
    if process is None:
        st.text("Waiting for the job")
    elif process.running:
        st.text("Starting")
    elif process.killed:
        st.text("Stopped")
    else:
        st.error("The job could not be run:")
        st.code(process.output, language=None, wrap_lines=True)
