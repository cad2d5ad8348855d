"""`lora captions check|pull|push|approve`: check, download, upload and approve captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import say, warn, write
from .errors import UsageError, report_errors
from .exits import Exit
from .group import verbosity
from .options import BucketName, CaFile, Context, Endpoint, JobName, Namespace, Output, PlainHttp
from .references import JobReference
from .store_access import read_store_address

if TYPE_CHECKING:
    from lora_api.keys import JobKeys
    from lora_trainer.annotate.lint import Finding
    from lora_trainer.annotate.review import CaptionRow

METADATA = "metadata.jsonl"

app = typer.Typer(no_args_is_help=True, help="Check, download, upload and approve captions.")

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A folder with metadata.jsonl, or with a text file per image.")
]


@app.command()
@verbosity
def check(
    folder: Folder,
    *,
    token: Annotated[
        str, typer.Option(help="The token of the concept. Default: the word after 'a photo of'.")
    ] = "",
    class_name: Annotated[str, typer.Option("--class", help="The noun after the token.")] = "",
    output: Output = None,
) -> None:
    """Check captions for problems that harm training; exits with 1 when there are problems."""
    with report_errors():
        from lora_trainer.annotate.lint import check_captions, usual_token

        captions = read_folder(folder)
        token = token or usual_token(captions)
        findings = check_captions(captions, token, class_name)
        if output:
            problems = [_as_data(finding) for finding in findings]
            write({"captions": len(captions), "token": token, "problems": problems}, output)
        else:
            _print_findings(captions, token, findings)
        if findings:
            raise typer.Exit(Exit.FAILED)


@app.command()
@verbosity
def pull(
    job: JobName,
    folder: Folder,
    *,
    endpoint: Endpoint = "",
    bucket: BucketName = "loras",
    http: PlainHttp = False,
    ca_file: CaFile = "",
    namespace: Namespace = "",
    context: Context = "",
    output: Output = None,
) -> None:
    """Download a job's captions and clean images into a folder."""
    with report_errors():
        from lora_api.manifest import sha256_hex
        from lora_trainer.annotate.review import read_rows
        from lora_trainer.annotate.review_store import read_captions

        address = read_store_address(endpoint, http=http, ca_file=ca_file)
        keys = _keys(_get_job(job, context, namespace))
        store = address.bucket(bucket)
        data = read_captions(store, keys)
        rows = read_rows(data)
        names = [_safe_name(row.file_name) for row in rows]
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            store.get_file(keys.image_named(name), folder / name)
        (folder / METADATA).write_bytes(data)
        _print_digest(f"{folder / METADATA}  sha256:", sha256_hex(data), output)


@app.command()
@verbosity
def push(
    job: JobName,
    folder: Folder,
    *,
    endpoint: Endpoint = "",
    bucket: BucketName = "loras",
    http: PlainHttp = False,
    ca_file: CaFile = "",
    namespace: Namespace = "",
    context: Context = "",
    output: Output = None,
) -> None:
    """Upload edited captions; a job trains on them only after they are approved."""
    with report_errors():
        from lora_api.manifest import sha256_hex
        from lora_trainer.annotate.lint import check_captions
        from lora_trainer.annotate.review_store import push_captions

        data = _metadata(folder).read_bytes()
        address = read_store_address(endpoint, http=http, ca_file=ca_file)
        resource = _get_job(job, context, namespace)
        rows: list[CaptionRow] = push_captions(address.bucket(bucket), _keys(resource), data)
        concept = resource["spec"]["concept"]
        captions = {row.file_name: row.text for row in rows}
        for finding in check_captions(captions, concept["token"], concept["className"]):
            warn(f"{finding.file_name}: {finding.problem}: {finding.message}")
        _print_digest("uploaded sha256:", sha256_hex(data), output)


@app.command()
@verbosity
def approve(
    job: JobName, folder: Folder, *, namespace: Namespace = "", context: Context = "", output: Output = None
) -> None:
    """Let a job train on exactly the captions in this folder; push them first if they were edited."""
    with report_errors():
        from lora_api.manifest import sha256_hex

        from .cluster.client import on_cluster

        digest = sha256_hex(_metadata(folder).read_bytes())
        reference = JobReference.parse(job, namespace)
        change = {"annotation": {"approvedCaptions": digest}}
        on_cluster(lambda jobs: jobs.patch_spec(reference.name, change), context, reference.namespace)
        _print_digest("approved sha256:", digest, output)


def read_folder(folder: Path) -> dict[str, str]:
    """Read the captions of a folder, by file name, with the rules of the annotation stage.

    A warning is printed for each file that the stage would not use.

    Raises:
        UsageError: when the folder does not exist, or has neither metadata.jsonl nor images with captions.
    """
    from lora_trainer.annotate.inspection import read_captions
    from lora_trainer.annotate.review import read_rows
    from lora_trainer.errors import NoInputError

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    try:
        captions, warnings = read_captions(folder)
    except NoInputError:
        if not (folder / METADATA).is_file():
            raise UsageError(
                f"{folder} has neither {METADATA} nor images with captions beside them"
            ) from None
        # `read_captions` needs the images. A folder may hold the captions alone, to be edited or checked.
        return {row.file_name: row.text for row in read_rows((folder / METADATA).read_bytes())}
    for warning in warnings:
        warn(warning)
    return captions


def _metadata(folder: Path) -> Path:
    path = folder / METADATA
    if not path.is_file():
        raise UsageError(f"{path} does not exist: pull the job's captions first")
    return path


def _safe_name(name: str) -> str:
    """Return a file name from the store, if it is that of an image inside the folder that it is joined to."""
    if name != Path(name).name or name.startswith(".") or not name.isprintable() or not name.endswith(".png"):
        raise UsageError(
            f"the captions name the image {name!r}, which is not the name of a PNG; nothing was written"
        )
    return name


def _get_job(text: str, context: str, namespace: str) -> Mapping[str, Any]:
    from .cluster.client import on_cluster

    reference = JobReference.parse(text, namespace)
    return on_cluster(lambda jobs: jobs.get(reference.name), context, reference.namespace)


def _keys(resource: Mapping[str, Any]) -> JobKeys:
    from lora_api.keys import JobKeys

    metadata = resource["metadata"]
    return JobKeys(metadata["namespace"], metadata["name"], metadata["uid"])


def _print_findings(captions: Mapping[str, str], token: str, findings: list[Finding]) -> None:
    if not token:
        warn("no token is given, and the captions show none: use --token to check for it")
    for finding in findings:
        say(f"{finding.file_name}: {finding.problem}: {finding.message}")
    bad = len({finding.file_name for finding in findings})
    suffix = f", token {token!r}" if token else ""
    say(f"{len(captions)} captions, {bad} with problems{suffix}")


def _as_data(finding: Finding) -> dict[str, str]:
    return {"file": finding.file_name, "problem": finding.problem, "message": finding.message}


def _print_digest(words: str, digest: str, output: Any) -> None:
    if output:
        write({"sha256": digest}, output)
    else:
        say(words + digest)
