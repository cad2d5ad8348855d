"""`lora get`: download a finished job's adapter, and verify each file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import say, write
from ..errors import ClusterError, report_errors
from ..options import CaFile, Context, Endpoint, JobName, Namespace, Output, PlainHttp
from ..references import JobReference
from ..store_access import read_store_address
from ..transfer import download_adapter


def get(
    name: JobName,
    folder: Annotated[Path | None, typer.Argument(help="Default: a folder named like the job, here.")] = None,
    *,
    endpoint: Endpoint = "",
    http: PlainHttp = False,
    ca_file: CaFile = "",
    namespace: Namespace = "",
    context: Context = "",
    output: Output = None,
) -> None:
    """Download a job's adapter, previews and report, and verify each file's sha256.

    The keys of the store are read from LORA_STORE_ACCESS_KEY and LORA_STORE_SECRET_KEY, or from
    AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
    """
    with report_errors():
        from .client import on_cluster

        job = JobReference.parse(name, namespace)
        address = read_store_address(endpoint, http=http, ca_file=ca_file)
        resource = on_cluster(lambda client: client.get(job.name), context, job.namespace)
        bucket, key = _published(resource)
        target = folder or Path(job.name)
        manifest = download_adapter(address.bucket(bucket), key, target)
        if output:
            write(manifest.to_wire(), output)
            return
        say(
            f"{target / manifest.adapter.uri.rsplit('/', 1)[1]}  sha256:{manifest.adapter.sha256}  "
            f"({len(manifest.files)} files, all verified)"
        )


def _published(job: Mapping[str, Any]) -> tuple[str, str]:
    """Return the bucket and the manifest's key of a finished job.

    Raises:
        ClusterError: when the job has no adapter yet.
    """
    from .table import status_of

    status, name = status_of(job), job["metadata"]["name"]
    if status.adapter is None:
        raise ClusterError(
            f"{name} has no adapter yet: it is {status.phase}; `lora watch {name}` waits for it"
        )
    return status.adapter.location[0], status.adapter.manifest_key
