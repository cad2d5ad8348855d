"""Options and arguments that several commands share."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Format

if TYPE_CHECKING:
    from .cluster.client import LoraTrainingJobClient

COMPLETION_SECONDS = 2.0
"""Time for the API server to answer a completion."""


def complete_name(given: str) -> list[str]:
    """Complete the name of a job for the shell; no names if the cluster does not answer within `COMPLETION_SECONDS`."""
    from .cluster.client import on_cluster

    async def ask(jobs: LoraTrainingJobClient) -> list[str]:
        items, _ = await asyncio.wait_for(jobs.list_all(), COMPLETION_SECONDS)
        return [job["metadata"]["name"] for job in items]

    try:
        return [name for name in on_cluster(ask) if name.startswith(given)]
    except Exception:  # the shell would show an error in the line that the user is typing
        return []


JobPath = Annotated[
    Path, typer.Argument(metavar="FILE", help="A LoraTrainingJob in YAML or JSON; - reads stdin.")
]
JobPaths = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="LoraTrainingJobs in YAML or JSON; - reads stdin.")
]
JobName = Annotated[
    str,
    typer.Argument(
        metavar="[NAMESPACE/]NAME", help="Name of a LoraTrainingJob.", autocompletion=complete_name
    ),
]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Default: the context's namespace.")]
Context = Annotated[str, typer.Option(help="Context of the kubeconfig. Default: the current one.")]
Everywhere = Annotated[bool, typer.Option("--all-namespaces", "-A", help="Jobs of every namespace.")]
Output = Annotated[Format | None, typer.Option("--output", "-o", help="Print JSON or YAML for programs.")]
Assign = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a field under spec, for example training.maxSteps=100. May be repeated.",
    ),
]

Home = Annotated[Path, typer.Option(help="Folder of local runs, models and the local store.")]
Put = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FOLDER:PREFIX",
        help="Copy a folder, or one file to a key, into the input bucket first. May be repeated.",
    ),
]
Again = Annotated[bool, typer.Option("--again", help="Train again although the job has succeeded.")]

Endpoint = Annotated[
    str,
    typer.Option(
        envvar="LORA_STORE_ENDPOINT",
        help="S3 service as HOST:PORT or as a URL with http:// or https://.",
    ),
]
PlainHttp = Annotated[bool, typer.Option("--http", help="Use HTTP for an endpoint given as HOST:PORT.")]
CaFile = Annotated[
    str,
    typer.Option(envvar="LORA_STORE_CA_FILE", help="Certificate authority of the S3 service, a PEM file."),
]
BucketName = Annotated[str, typer.Option(envvar="LORA_STORE_BUCKET", help="Output bucket of the profile.")]
