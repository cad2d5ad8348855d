"""The command `lora run`: its options, its input files, and what it prints at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from minio import Minio
from rich.console import Console
from rich.markup import escape

from lora_api.job import InvalidResourceError, JobSpec
from lora_api.keys import JobKeys
from lora_api.manifest import Manifest
from lora_api.profile import Profile
from lora_api.status import JobStatus, Phase

from ..jobfile import UsageError, read_job
from ..settings import SettingsError, read_profiles
from ..store import DownloadError, download_adapter, upload_folder
from .display import Display
from .run import LocalRun, LocalRunError
from .seaweed import Credentials, Seaweed, SeaweedError

console = Console()

LLM_KEYS = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
USAGE, FAILED, WAITING = 64, 1, 3


@dataclass(frozen=True)
class LocalStore:
    """A store that can be used now."""

    endpoint: str
    secure: bool
    credentials: Credentials
    own: bool
    """It is this command's own, so that the dataset's prefix may be made to equal the folder of images."""

    def client(self) -> Minio:
        keys = self.credentials
        return Minio(self.endpoint, keys.access_key, keys.secret_key, secure=self.secure)


def run(
    job: Annotated[Path, typer.Argument(help="A LoraTrainingJob in YAML.")],
    *,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of photographs; becomes the job's dataset.prefix in the store."),
    ] = None,
    profiles: Annotated[
        Path | None, typer.Option(help="Profiles file, as the operator reads it. Its endpoint is replaced.")
    ] = None,
    put: Annotated[
        list[str] | None,
        typer.Option(help="FOLDER:PREFIX, a folder to copy into the input bucket first. May be repeated."),
    ] = None,
    home: Annotated[Path, typer.Option(help="Where runs, models and the local store are kept.")] = Path(
        ".lora"
    ),
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", help="FIELD=VALUE under spec, for example training.maxSteps=100."),
    ] = None,
    endpoint: Annotated[
        str,
        typer.Option(
            help="http(s)://host:port of an S3 store to use (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)."
        ),
    ] = "",
) -> None:
    """Run a job on this machine, without a cluster. Ctrl-C suspends it; run it again to go on."""
    try:
        file = read_job(job, assign or [])
        spec, namespace = file.spec, file.namespace or "default"
        profile = _read_profile(profiles, spec)
        buckets = [profile.store.input_bucket, profile.store.output_bucket]
        with ExitStack() as stack:
            store = stack.enter_context(_open_store(endpoint, home / "store", buckets))
            local_store = {"endpoint": store.endpoint, "secure": store.secure, "ca_config_map": ""}
            profile = profile.model_copy(update={"store": profile.store.model_copy(update=local_store)})
            if images:
                _upload(store, buckets[0], images, spec.dataset.prefix, mirror=store.own)
            for item in put or []:
                folder, found, prefix = item.rpartition(":")
                if not found:
                    raise UsageError(f"--put {item}: write FOLDER:PREFIX")
                _upload(store, buckets[0], Path(folder), prefix)
            metadata = {"name": file.name, "namespace": namespace}
            local = LocalRun(home / "runs" / namespace / file.name, metadata, spec, profile)
            stack.callback(local.forget_credentials)
            local.save_credentials(store.credentials, _llm_key(profile))
            with Display(console) as display:
                status = local.run(display.show)
            code = _conclude(status, local, store.client(), buckets[1])
    except (
        UsageError,
        InvalidResourceError,
        SettingsError,
        SeaweedError,
        LocalRunError,
        DownloadError,
    ) as error:
        console.print(f"[red]lora:[/] {escape(str(error))}", highlight=False)
        code = USAGE
    raise typer.Exit(code)


@contextmanager
def _open_store(endpoint: str, folder: Path, buckets: list[str]) -> Iterator[LocalStore]:
    if not endpoint:
        with Seaweed(folder, buckets) as seaweed:
            yield LocalStore(seaweed.endpoint, False, seaweed.credentials, own=True)
        return
    scheme, found, address = endpoint.partition("://")
    if not found or scheme not in ("http", "https"):
        raise UsageError(f"--endpoint {endpoint}: write http://HOST:PORT or https://HOST:PORT")
    try:
        credentials = Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    except KeyError as error:
        raise UsageError(f"--endpoint needs the environment variable {error.args[0]}") from None
    yield LocalStore(address, scheme == "https", credentials, own=False)


def _read_profile(path: Path | None, spec: JobSpec) -> Profile:
    if path is None:
        return DEFAULT_PROFILE
    profiles = read_profiles(path)
    if spec.profile not in profiles:
        raise UsageError(f"{path} has no profile {spec.profile!r}; it has: {', '.join(sorted(profiles))}")
    return profiles[spec.profile]


DEFAULT_PROFILE = Profile.model_validate(
    {
        "store": {"endpoint": "local"},
        "llm": {"provider": "anthropic", "models": ["claude-haiku-5-5", "claude-sonnet-5-5"]},
        "models": {
            "sdxl-base-1.0": {
                "source": "hub",
                "repo": "stabilityai/stable-diffusion-xl-base-1.0",
                "variant": "fp16",
                "vae": {"repo": "madebyollin/sdxl-vae-fp16-fix"},
            }
        },
    }
)
"""What `lora run` uses without a profiles file."""


def _llm_key(profile: Profile) -> str:
    variable = LLM_KEYS.get(profile.llm.provider) if profile.llm else None
    return os.environ.get(variable, "") if variable else ""


def _upload(store: LocalStore, bucket: str, folder: Path, prefix: str, mirror: bool = False) -> None:
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder")
    sent = upload_folder(store.client(), bucket, folder, prefix, mirror)
    console.print(f"{'Stored':<12} {folder} as {prefix} ({sent} new or changed)", highlight=False)


def _conclude(status: JobStatus, local: LocalRun, client: Minio, bucket: str) -> int:
    """Say how it ended, and fetch what was made."""
    console.print(f"{'Status':<12} {local.status_file}", highlight=False)
    if status.phase == Phase.SUCCEEDED and status.adapter is not None:
        folder = local.folder / "result"
        manifest = download_adapter(client, bucket, status.adapter.manifest_key, folder)
        _print_result(manifest, folder)
        return 0
    for job in local.jobs.values():
        if job.child.failed:
            console.print(f"{'Log':<12} {job.log_file}", highlight=False)
    return FAILED if status.phase == Phase.FAILED else WAITING


def _print_result(manifest: Manifest, folder: Path) -> None:
    root = manifest.adapter.manifest_key.rsplit("/", 1)[0] + "/"
    keys = JobKeys(manifest.namespace, manifest.name, manifest.uid)
    sheet, files = keys.preview_sheet(manifest.attempt), [entry.key for entry in manifest.files]
    lines = [
        ("Stored at", manifest.adapter.uri),
        ("Adapter", str(folder / manifest.adapter.uri.rsplit("/", 1)[1])),
        ("sha256", manifest.adapter.sha256),
        ("Size", f"{manifest.adapter.bytes:,} bytes"),
        ("Loss", f"{manifest.first_loss:.4f} -> {manifest.final_loss:.4f} over {manifest.steps} steps"),
        *(
            [("Report", str(folder / manifest.adapter.report_key.removeprefix(root)))]
            if manifest.adapter.report_key
            else []
        ),
        *([("Previews", str(folder / sheet.removeprefix(root)))] if sheet in files else []),
    ]
    for name, value in lines:
        console.print(f"{name:<12} {value}", highlight=False, soft_wrap=True)
