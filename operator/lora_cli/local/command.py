"""`lora run`: run a job on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import report_errors
from ..job_file import read_job
from ..options import Again, Assign, CaFile, Home, JobPath, Output, PlainHttp, Put


def run(
    job: JobPath,
    *,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of photographs; becomes the job's dataset.prefix in the store."),
    ] = None,
    profiles: Annotated[
        Path | None, typer.Option(help="Profiles file, as the operator reads it. Its endpoint is replaced.")
    ] = None,
    put: Put = None,
    home: Home = Path(".lora"),
    again: Again = False,
    output: Output = None,
    assign: Assign = None,
    endpoint: Annotated[
        str,
        typer.Option(
            help="S3 service to use instead of the local store: HOST:PORT or a URL. Needs LORA_STORE_ACCESS_KEY and "
            "LORA_STORE_SECRET_KEY, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ),
    ] = "",
    http: PlainHttp = False,
    ca_file: CaFile = "",
) -> None:
    """Run a job on this machine, without a cluster. Ctrl-C suspends it; the same command resumes it."""
    with report_errors():
        # Imported here: the session needs the operator's decisions.
        from .session import Options, run_local

        file = read_job(job, assign or [])
        options = Options(
            home=home,
            images=images,
            profiles=profiles,
            put=tuple(put or ()),
            endpoint=endpoint,
            http=http,
            ca_file=ca_file,
            again=again,
            output=output,
        )
        raise typer.Exit(run_local(file, options))
