"""`lora get`: a finished job's adapter out of the store, every byte as its manifest says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import certifi
import typer
import urllib3
from minio import Minio

from ..api import Object
from ..jobfile import UsageError
from ..store import DownloadError, download_adapter
from .connection import ClusterError
from .options import Context, Name, Namespace, Output, console, on_cluster, plainly, write
from .table import status_of


def get(
    name: Name,
    folder: Annotated[Path | None, typer.Argument(help="Left out, one of the job's name, here.")] = None,
    *,
    endpoint: Annotated[str, typer.Option(envvar="LORA_STORE_ENDPOINT", help="host:port of the S3 service.")],
    http: Annotated[bool, typer.Option("--http", help="The store is served without TLS.")] = False,
    ca_file: Annotated[
        str, typer.Option(envvar="LORA_STORE_CA_FILE", help="The store's certificate authority.")
    ] = "",
    namespace: Namespace = "",
    context: Context = "",
    output: Output = None,
) -> None:
    """Download a job's adapter, previews and report, and verify each file's sha256.

    The store's keys are read from LORA_STORE_ACCESS_KEY and LORA_STORE_SECRET_KEY.
    """
    with plainly():
        job = on_cluster(lambda jobs: jobs.get(name), context, namespace)
        bucket, key = _published(job)
        target = folder or Path(name)
        try:
            manifest = download_adapter(_client(endpoint, http, ca_file), bucket, key, target)
        except DownloadError as error:
            raise ClusterError(str(error)) from None
        if output:
            write(manifest.to_wire(), output)
            return
        console.print(
            f"{target / manifest.adapter.uri.rsplit('/', 1)[1]}  sha256:{manifest.adapter.sha256}  "
            f"({len(manifest.files)} files, all verified)",
            highlight=False,
            soft_wrap=True,
        )


def _published(job: Object) -> tuple[str, str]:
    """The bucket and the manifest's key of a finished job."""
    status, name = status_of(job), job["metadata"]["name"]
    if status.adapter is None:
        raise ClusterError(
            f"{name} has no adapter yet: it is {status.phase}; `lora watch {name}` waits for it"
        )
    return status.adapter.uri.removeprefix("s3://").partition("/")[0], status.adapter.manifest_key


def _client(endpoint: str, http: bool, ca_file: str) -> Minio:
    try:
        keys = os.environ["LORA_STORE_ACCESS_KEY"], os.environ["LORA_STORE_SECRET_KEY"]
    except KeyError as error:
        raise UsageError(f"set {error.args[0]} to a key that may read the store") from None
    pool = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=5, read=60),
        retries=urllib3.Retry(total=2, backoff_factor=0.5, status_forcelist=(500, 502, 503, 504)),
        ca_certs=ca_file or certifi.where(),
    )
    try:
        return Minio(endpoint, *keys, secure=not http, region="us-east-1", http_client=pool)
    except ValueError as error:
        raise UsageError(f"--endpoint {endpoint}: {error}; write HOST:PORT") from None
