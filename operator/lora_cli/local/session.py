"""A local run from start to end: open the store, upload images, run the stages, download the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import Format, Verbosity, err, label, out, say, warn, write
from ..errors import MissingInputError, UsageError
from ..exits import Exit
from ..job_file import JobFile
from ..profiles import read_profile
from ..references import require_name, require_namespace
from ..store_access import StoreAddress, read_store_address
from ..transfer import download_adapter, upload_file, upload_folder
from .announce import announce_end
from .preflight import llm_key, require_few, require_gpu, require_key, require_webhook_secret
from .shared_store import require_running, require_space, shared_store

if TYPE_CHECKING:
    from lora_api.manifest import Manifest
    from lora_api.profile import Profile
    from lora_api.status import JobStatus
    from lora_operator.decide import Decision
    from lora_trainer.store import Bucket

    from .runner import LocalRun


@dataclass(frozen=True)
class Options:
    """Options of `lora run` and `lora train`, other than the job itself."""

    home: Path
    images: Path | None = None
    profiles: Path | None = None
    put: tuple[str, ...] = ()
    """FOLDER:PREFIX of folders, or FILE:KEY of files, to copy into the input bucket."""
    endpoint: str = ""
    """Endpoint of the S3 service; empty to use the home's own store."""
    http: bool = False
    ca_file: str = ""
    again: bool = False
    output: Format | None = None
    """Format in which the job's resource is printed at the end, and the progress on stderr."""


@dataclass(frozen=True)
class LocalStore:
    """A running store."""

    address: StoreAddress
    own: bool
    """Whether the store belongs to the home. Objects of the dataset without a file in the folder of images are then
    removed; other users may have put them into a shared store."""

    def bucket(self, name: str) -> Bucket:
        return self.address.bucket(name)


def run_local(file: JobFile, options: Options) -> int:
    """Run a job on this machine until it ends, is suspended or waits for an approval. Return the exit code.

    Raises:
        CommandError, StageError: when the job cannot run. Results of earlier runs are kept.
    """
    from lora_operator.decide.admission import find_problem

    from .runner import LocalRun

    spec = file.spec
    name, namespace = require_name(file.name), require_namespace(file.namespace) or "default"
    profile = read_profile(options.profiles, spec.profile)
    # These problems need a correction by the user: check them before the store starts and a status is written.
    if problem := find_problem(spec, namespace, profile):
        raise UsageError(f"{problem.reason}: {problem.message}")
    if options.images is not None:
        require_few(spec, options.images)
        _require_separate(options.home, options.images)
    require_key(spec, profile, options.images)
    require_gpu(spec)
    signers = require_webhook_secret(profile)
    if options.output:
        Verbosity.quiet = True  # stdout is for the resource alone
    buckets = [profile.store.input_bucket, profile.store.output_bucket]
    with _disk_errors(options.home), ExitStack() as stack:
        store = stack.enter_context(_open_store(options, buckets))
        metadata = {"name": name, "namespace": namespace}
        profile = _with_store(profile, store.address)
        local = LocalRun(
            options.home / "runs" / namespace / name, metadata, spec, profile, again=options.again
        )
        changed = _upload(store, buckets[0], options, spec.dataset.prefix)
        if local.finished and changed:
            local.start_anew()
        if local.finished:
            say(
                "this job has succeeded before, and neither it nor its images changed; train again with --again"
            )
            announce_end(local, signers)
            return _report_outcome(local.status, local, store.bucket(buckets[1]), options.output)
        if store.own and not store.bucket(buckets[0]).list(spec.dataset.prefix, 1):
            raise MissingInputError(
                f"the store has no images under {spec.dataset.prefix}: name the folder of the photographs with --images"
            )
        stack.callback(local.forget_credentials)
        local.save_credentials(store.address, llm_key(profile))
        _follow(local, store, options)
        announce_end(local, signers)
        return _report_outcome(local.status, local, store.bucket(buckets[1]), options.output)


def _require_separate(home: Path, images: Path) -> None:
    """Check that the files of a home would not be uploaded as images. Hidden folders, such as `.lora`, are not.

    Raises:
        UsageError: when the home is in the folder of images.
    """
    folder, root = home.resolve(), images.resolve()
    if folder.is_relative_to(root):
        parts = folder.relative_to(root).parts
        if not any(part.startswith(".") for part in parts):
            raise UsageError(
                f"--home {home} lies in the folder of images {images}: name a --home outside of it"
            )


@contextmanager
def _disk_errors(home: Path) -> Iterator[None]:
    """Report a full disk as such. The store reports it only as an internal error."""
    try:
        yield
    except Exception:
        if home.is_dir():
            require_space(home)
        raise


@contextmanager
def _open_store(options: Options, buckets: list[str]) -> Iterator[LocalStore]:
    if options.endpoint:
        address = read_store_address(options.endpoint, http=options.http, ca_file=options.ca_file)
        yield LocalStore(address, own=False)
        return
    with shared_store(options.home / "store", buckets) as address:
        yield LocalStore(address, own=True)


def _with_store(profile: Profile, address: StoreAddress) -> Profile:
    """Return a copy of a profile whose store is that of this run."""
    changes = {"endpoint": address.endpoint, "secure": address.secure, "ca_config_map": ""}
    return profile.model_copy(update={"store": profile.store.model_copy(update=changes)})


def _upload(store: LocalStore, bucket: str, options: Options, prefix: str) -> int:
    """Upload the images and the folders and files of `--put`. Return the number of new or changed images."""
    changed = 0
    if options.images:
        changed = _upload_folder(store, bucket, options.images, prefix, mirror=store.own, dataset=True)
    put_files(store, bucket, options.put)
    return changed


def put_files(store: LocalStore, bucket: str, items: Iterable[str]) -> None:
    """Upload folders (FOLDER:PREFIX) and files (FILE:KEY), as `--put` names them.

    Raises:
        UsageError: when an item has another form, or its folder or file does not exist.
    """
    for item in items:
        folder, separator, key = item.rpartition(":")
        if not separator:
            raise UsageError(f"--put {item}: write FOLDER:PREFIX or FILE:KEY")
        if Path(folder).is_file():
            if not key or key.endswith("/"):
                raise UsageError(
                    f"--put {item}: a file needs a whole key, for example models/house.safetensors"
                )
            uploaded = upload_file(store.bucket(bucket), Path(folder), key)
            label("Stored", f"{folder} as {key} ({uploaded} new or changed)")
        else:
            _upload_folder(store, bucket, Path(folder), key)


def _upload_folder(
    store: LocalStore, bucket: str, folder: Path, prefix: str, *, mirror: bool = False, dataset: bool = False
) -> int:
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    uploaded = upload_folder(store.bucket(bucket), folder, prefix, mirror, dataset=dataset)
    label("Stored", f"{folder} as {prefix} ({uploaded} new or changed)")
    return uploaded


def _follow(local: LocalRun, store: LocalStore, options: Options) -> None:
    """Run the job and show its progress.

    Raises:
        SeaweedError: when the home's store has ended. The stages are then stopped; checkpoints in the store are kept.
    """
    from .display import Display

    with Display(err() if options.output else out()) as display:

        def show(decision: Decision) -> None:
            if store.own:
                require_running(options.home / "store", store.address)
            display.show(decision)
            display.show_previews(local.folder / "work")

        local.run(show)


def _report_outcome(status: JobStatus, local: LocalRun, bucket: Bucket, output: Format | None) -> int:
    """Print the outcome, and download the published adapter. Return the exit code."""
    from lora_api.status import Phase

    if output:
        write(local.resource(), output)
    label("Status", local.status_file)
    folder = local.folder / "result"
    if status.phase == Phase.SUCCEEDED and status.adapter is not None:
        manifest = download_adapter(bucket, status.adapter.manifest_key, folder)
        print_result(manifest, folder)
        return Exit.OK
    for job in local.jobs.values():
        if job.child.failed:
            label("Log", job.log_file)
    if status.phase == Phase.FAILED:
        if folder.is_dir():
            warn(f"{folder} still holds the adapter of the last run that succeeded")
        require_space(local.folder)
        return Exit.FAILED
    return Exit.WAITING


def print_result(manifest: Manifest, folder: Path) -> None:
    """Print where a published adapter and its report were downloaded to."""
    from lora_api.keys import JobKeys

    root = manifest.adapter.manifest_key.rsplit("/", 1)[0] + "/"
    keys = JobKeys(manifest.namespace, manifest.name, manifest.uid)
    sheet, files = keys.contact_sheet(manifest.attempt), [entry.key for entry in manifest.files]
    label("Stored at", manifest.adapter.uri)
    label("Adapter", folder / manifest.adapter.uri.rsplit("/", 1)[1])
    label("sha256", manifest.adapter.sha256)
    label("Size", f"{manifest.adapter.bytes:,} bytes")
    label("Loss", f"{manifest.first_loss:.4f} -> {manifest.final_loss:.4f} over {manifest.steps} steps")
    if manifest.adapter.report_key:
        label("Report", folder / manifest.adapter.report_key.removeprefix(root))
    if sheet in files:
        label("Previews", folder / sheet.removeprefix(root))
