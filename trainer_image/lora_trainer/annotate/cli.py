"""`lora captions check|pull|push|approve`: captions as files that people read and edit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from lora_api.keys import JobKeys
from lora_api.manifest import sha256_hex
from lora_api.steps import StoreAccess

from ..errors import BadDataError, StepError
from ..store import Bucket, Store
from .desk import RESOURCE, approve_captions, kubectl, push_captions, read_captions
from .lint import check_captions, usual_trigger
from .review import CaptionRow, read_rows

METADATA = "metadata.jsonl"
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif"}

app = typer.Typer(no_args_is_help=True, help="Read, check, edit and approve captions.")

Folder = Annotated[Path, typer.Argument(help="A folder with metadata.jsonl, or with a text file per image.")]
JobName = Annotated[str, typer.Argument(metavar="NAMESPACE/NAME", help="A LoraTrainingJob.")]
Endpoint = Annotated[str, typer.Option(envvar="LORA_STORE_ENDPOINT", help="host:port of the S3 service.")]
BucketName = Annotated[str, typer.Option(envvar="LORA_STORE_BUCKET", help="The profile's output bucket.")]
Plain = Annotated[bool, typer.Option("--http", help="The store is served without TLS.")]
CaFile = Annotated[str, typer.Option(envvar="LORA_STORE_CA_FILE", help="The store's certificate authority.")]


@app.command()
def check(
    folder: Folder,
    *,
    token: Annotated[str, typer.Option(help="The trigger; left out, the word after 'a photo of'.")] = "",
    class_name: Annotated[str, typer.Option("--class", help="The noun after the trigger.")] = "",
) -> None:
    """Look for captions that are bad to train on; exits with 1 when there are any."""
    captions = _read_folder(folder)
    trigger = token or usual_trigger(captions)
    if not trigger:
        typer.echo("no trigger given and none to be seen: give --token to check for it")
    findings = check_captions(captions, trigger, class_name)
    for finding in findings:
        typer.echo(f"{finding.file_name}: {finding.problem}: {finding.message}")
    bad = len({finding.file_name for finding in findings})
    typer.echo(
        f"{len(captions)} captions, {bad} with problems" + (f", trigger {trigger!r}" if trigger else "")
    )
    if findings:
        raise typer.Exit(1)


@app.command()
def pull(
    job: JobName,
    folder: Folder,
    *,
    endpoint: Endpoint,
    bucket: BucketName = "loras",
    http: Plain = False,
    ca_file: CaFile = "",
) -> None:
    """Fetch a job's captions and clean images into a folder."""
    keys = _keys(_get_job(job))
    with _store(endpoint, bucket, http, ca_file) as store:
        data = read_captions(store, keys)
        folder.mkdir(parents=True, exist_ok=True)
        for row in _rows(data):
            name = Path(row.file_name).name
            store.get_file(keys.image_named(name), folder / name)
        (folder / METADATA).write_bytes(data)
    typer.echo(f"{folder / METADATA}  sha256:{sha256_hex(data)}")


@app.command()
def push(
    job: JobName,
    folder: Folder,
    *,
    endpoint: Endpoint,
    bucket: BucketName = "loras",
    http: Plain = False,
    ca_file: CaFile = "",
) -> None:
    """Put edited captions back; nothing is trained on them before they are approved."""
    data = _file(folder).read_bytes()
    resource = _get_job(job)
    keys = _keys(resource)
    with _store(endpoint, bucket, http, ca_file) as store:
        rows = push_captions(store, keys, data)
    concept = resource["spec"]["concept"]
    for finding in check_captions(
        {r.file_name: r.text for r in rows}, concept["token"], concept["className"]
    ):
        typer.echo(f"warning: {finding.file_name}: {finding.problem}: {finding.message}")
    typer.echo(f"sha256:{sha256_hex(data)}")


@app.command()
def approve(job: JobName, folder: Folder) -> None:
    """Let a job train on exactly the captions in this folder; push them first if they were edited."""
    digest = sha256_hex(_file(folder).read_bytes())
    with _plainly():
        approve_captions(*_split(job), digest)
    typer.echo(f"approved sha256:{digest}")


def _read_folder(folder: Path) -> dict[str, str]:
    """Captions by file name: of metadata.jsonl, else of the text files beside the images."""
    if (folder / METADATA).is_file():
        return {row.file_name: row.text for row in _rows((folder / METADATA).read_bytes())}
    images = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURES)
    if not images:
        raise _fail(f"{folder} has neither {METADATA} nor images with captions beside them")
    beside = {path.name: path.with_suffix(".txt") for path in images}
    return {name: text.read_text() if text.is_file() else "" for name, text in beside.items()}


def _rows(data: bytes) -> list[CaptionRow]:
    try:
        return read_rows(data)
    except BadDataError as error:
        raise _fail(str(error)) from None


def _file(folder: Path) -> Path:
    path = folder / METADATA
    if not path.is_file():
        raise _fail(f"{path} is not there: pull the job's captions first")
    return path


def _split(job: str) -> tuple[str, str]:
    namespace, separator, name = job.partition("/")
    if not separator or not namespace or not name:
        raise _fail(f"name the job as NAMESPACE/NAME, not {job!r}")
    return namespace, name


def _get_job(job: str) -> dict[str, Any]:
    namespace, name = _split(job)
    with _plainly():
        said = kubectl("get", RESOURCE, name, "-n", namespace, "-o", "json")
    resource: dict[str, Any] = json.loads(said)
    return resource


def _keys(resource: dict[str, Any]) -> JobKeys:
    metadata = resource["metadata"]
    return JobKeys(metadata["namespace"], metadata["name"], metadata["uid"])


@contextmanager
def _plainly() -> Iterator[None]:
    """A step's error is the command's."""
    try:
        yield
    except StepError as error:
        raise _fail(str(error)) from None


@contextmanager
def _store(endpoint: str, bucket: str, http: bool, ca_file: str) -> Iterator[Bucket]:
    """The output bucket, with the keys of LORA_STORE_ACCESS_KEY and LORA_STORE_SECRET_KEY."""
    with TemporaryDirectory() as folder:
        for name, variable in (
            ("accessKey", "LORA_STORE_ACCESS_KEY"),
            ("secretKey", "LORA_STORE_SECRET_KEY"),
        ):
            if not os.environ.get(variable):
                raise _fail(f"set {variable} to a key that may read and write the bucket {bucket!r}")
            Path(folder, name).write_text(os.environ[variable])
        access = StoreAccess(
            endpoint=endpoint,
            secure=not http,
            ca_file=ca_file,
            credentials_dir=folder,
            input_bucket=bucket,
            output_bucket=bucket,
        )
        with _plainly():
            yield Store(access).output


def _fail(message: str) -> typer.Exit:
    typer.echo(message, err=True)
    return typer.Exit(2)
