"""Page that starts a job from uploaded photographs and follows it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence

import streamlit as st
import yaml

from lora_api.dataset import AnnotationMode, Dataset
from lora_api.draft import draft_manifest, slug
from lora_api.job import JobSpec, parse_spec
from lora_api.status import Phase
from lora_api.training import Recipe

from ..annotate.words import find_token_problem
from ..errors import BadDataError, StageError
from ..local_runs import AT_REST
from .approval import status_file
from .job_list import INTERRUPTED, JobEntry, list_jobs
from .jobs import last_preview, show_files, show_state
from .markup import escape_markdown
from .shared import catalog, jobs_api, settings, show_errors, sign_in, started, store, thumbnail
from .start import LocalStart, find_start, last_start, read_manifest, start_in_cluster, start_locally
from .uploads import (
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    Upload,
    check_uploads,
    count_photographs,
    find_count_problem,
    is_image,
    unreadable_images,
)

FEW, MANY = (Dataset.model_fields[limit].default for limit in ("min_images", "max_images"))
"""Numbers of photographs below and above which there is a warning, if the job takes them."""
MAX_NAMED = 5
"""Number of files that a warning names."""
RESUMABLE = (Phase.SUSPENDED, Phase.AWAITING_APPROVAL, INTERRUPTED)
"""Phases in which the same command continues the job."""
REFRESH_SECONDS = 3
START = "start_requested"
"""Key of the session's state: whether Train was clicked, and the job is not started yet."""
STARTS = threading.Lock()
"""Held while a local run is started, because each tab has a thread of its own."""
CAPTION_MODES = {
    AnnotationMode.TEMPLATE: "The same short caption for each photograph",
    AnnotationMode.EXISTING: "My own, uploaded with the photographs",
    AnnotationMode.LLM: "A language model writes them",
}
RECIPES = {
    Recipe.NONE: "The same defaults for every job",
    Recipe.AUTO: "By the kind of concept in the manifest",
    Recipe.SUBJECT: "For a thing or an animal",
    Recipe.PERSON: "For a person",
    Recipe.STYLE: "For a style",
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
    photographs = count_photographs(files)
    count = st.container()
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
    if token.strip() and (warning := find_token_problem(token.strip(), class_name.strip())):
        st.warning(escape_markdown(f"Token: {warning}."))
    manifest = _manifest(token.strip(), class_name.strip(), files)
    problem = _find_count_problem(photographs, manifest) if files else ""
    if problem:
        count.error(escape_markdown(f"{problem}."))
    elif files and not FEW <= photographs <= MANY:
        count.warning(f"{photographs} photographs: {FEW} to {MANY} give the best result.")
    ready = bool(photographs and token.strip() and class_name.strip() and not problem)
    st.button("Train", type="primary", width="stretch", disabled=not ready, on_click=_request_start)
    if st.session_state.pop(START, False) and ready:
        with show_errors():
            _start(manifest, files)
    if not ready and not problem:
        st.caption("Choose photographs, and fill in the token and the class.")


def _request_start() -> None:
    """Record a click on Train.

    A change of a field that arrives just after the click interrupts the run of the page. The value of the button is
    then lost, and the session's state is not.
    """
    st.session_state[START] = True


def _find_count_problem(photographs: int, manifest: str) -> str:
    """Return what is wrong with the number of photographs. A start checks it again with the rest of the manifest."""
    try:
        return find_count_problem(photographs, parse_spec(read_manifest(manifest)["spec"]).dataset)
    except StageError:
        return ""  # the start reports the manifest's problems


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
        recipe = st.selectbox(
            "Recipe",
            RECIPES,
            format_func=RECIPES.__getitem__,
            help="Defaults for the training that fit the concept and the number of photographs.",
        )
    document = draft_manifest(
        slug(name) or slug(f"{token} {class_name}") or "my-job",
        token or "CUS",
        class_name or "thing",
        mode,
        int(steps) if steps else None,
        recipe=recipe,
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
    if problem := find_count_problem(count_photographs(checked), parse_spec(document["spec"]).dataset):
        raise BadDataError(problem)
    name = document["metadata"]["name"]
    command, uploads = settings().run, settings().uploads
    if command is not None and uploads is not None:
        namespace = document["metadata"].get("namespace", "default")
        with STARTS:
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
    current = _current()
    namespace, _, name = current.partition("/")
    if not name:
        st.caption("The progress and the finished adapter appear here.")
        return
    st.subheader(escape_markdown(name), anchor=False)
    with show_errors():
        process, entry = _started(namespace, name), _find(name, namespace)
        if process is not None:
            own = entry is not None and _is_of(process, entry)
            _show_button((namespace, name), process, entry, own)
            if process.running and (process.stopping or not own):
                st.text("Saving a checkpoint" if process.stopping else "Starting")
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


def _current() -> str:
    """Return the job to follow as NAMESPACE/NAME; empty if there is none.

    The address keeps a job that a page without a session would not show: other pages drop it from the address, but not
    from the session. It keeps no other one, because each change of the address is a step of the browser's history.
    """
    last = _last_started()
    current = str(st.session_state.get("job") or st.query_params.get("job") or last)
    if current != last and st.query_params.get("job") != current:
        st.query_params["job"] = current
    return current


def _show_button(job: tuple[str, str], process: LocalStart, entry: JobEntry | None, own: bool) -> None:
    """Show a button that stops the job, or one that resumes a stopped one.

    It is disabled for a moment after a start and until a stop has ended. A second click, or one that was meant for the
    button before, then changes nothing.
    """
    if process.running:
        starting = time.time() - process.started_at < REFRESH_SECONDS
        label = "Stopping" if process.stopping else "Starting" if starting else "Stop"
        st.button(
            label,
            width="stretch",
            help="Saves a checkpoint. The job can be resumed.",
            disabled=process.stopping or starting,
            on_click=process.stop,
        )
    elif process.killed or (entry is not None and entry.phase in RESUMABLE):
        label = "Continue" if entry is not None and entry.phase == Phase.AWAITING_APPROVAL else "Resume"
        st.button(label, width="stretch", on_click=_resume, args=(job, process))


def _resume(job: tuple[str, str], process: LocalStart) -> None:
    """Start a stopped job again, unless another tab has done so."""
    with STARTS:
        known = started().get(job)
        if known is None or not known.running:
            started()[job] = process.run()


def _is_of(process: LocalStart, entry: JobEntry) -> bool:
    """Return whether a job's status was written by a run. That of an earlier run says nothing about this one."""
    runs = settings().runs
    try:
        return runs is None or status_file(runs, entry.keys).stat().st_mtime >= process.started_at
    except OSError:
        return False


def _last_started() -> str:
    """Return the namespace and name of the job that was started last on this machine; empty if there is none."""
    uploads = settings().uploads
    last = next(reversed(started()), None) or (last_start(uploads) if uploads is not None else None)
    return "/".join(last or ())


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
