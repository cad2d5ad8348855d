"""`lora submit|list|suspend|resume|logs`: jobs in a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_api.stages import StageName

from ..console import Format, clean, out, say, write
from ..errors import ClusterError, UsageError, report_errors
from ..job_file import read_jobs
from ..options import Assign, Context, Everywhere, JobName, JobPaths, Namespace, Output
from ..references import JobReference, require_namespace

if TYPE_CHECKING:
    from .client import LoraTrainingJobClient


def submit(
    jobs: JobPaths,
    *,
    namespace: Namespace = "",
    context: Context = "",
    assign: Assign = None,
    dry_run: Annotated[
        bool, typer.Option(help="Let the API server check the jobs without creating them.")
    ] = False,
    output: Output = None,
) -> None:
    """Create jobs in the cluster, after the checks of `lora validate`."""
    with report_errors():
        from .client import on_cluster

        # Every file is checked before the first job is created.
        files = read_jobs(jobs, assign or [])
        for file in files:
            if namespace and file.namespace and namespace != file.namespace:
                raise UsageError(
                    f"{file.source} is for namespace {file.namespace!r}: remove -n, or change the file"
                )
        created: list[Mapping[str, Any]] = []
        try:
            for file in files:
                where = require_namespace(namespace or file.namespace)
                created.append(on_cluster(partial(_submit, file.document, dry_run), context, where))
                if not output:
                    _print_created(created[-1], dry_run)
        finally:
            # also if a job was refused: those before it exist
            if output and created:
                items = {"apiVersion": "v1", "kind": "List", "items": created}
                write(created[0] if len(files) == 1 else items, output)


async def _submit(
    document: Mapping[str, Any], dry_run: bool, client: LoraTrainingJobClient
) -> Mapping[str, Any]:
    return await client.submit(document, dry_run)


def _print_created(job: Mapping[str, Any], dry_run: bool) -> None:
    name = f"{job['metadata']['namespace']}/{job['metadata']['name']}"
    say(f"{name} would be accepted" if dry_run else f"{name} created; follow it with: lora watch {name}")


def list_(
    *,
    namespace: Namespace = "",
    everywhere: Everywhere = False,
    context: Context = "",
    output: Output = None,
) -> None:
    """List jobs, those in progress first."""
    with report_errors():
        from .client import on_cluster
        from .table import job_table, sort_by_phase

        jobs, _ = on_cluster(
            lambda client: client.list_all(everywhere), context, require_namespace(namespace)
        )
        if output:
            write({"apiVersion": "v1", "kind": "List", "items": jobs}, output)
        elif jobs:
            console = out()
            console.print(
                job_table(sort_by_phase(jobs), everywhere, datetime.now(UTC), fill=console.is_terminal)
            )
        else:
            say("no jobs in this namespace; `lora list -A` lists those of every namespace")


def suspend(
    name: JobName, *, namespace: Namespace = "", context: Context = "", output: Output = None
) -> None:
    """Suspend a job, after its training has saved a checkpoint."""
    _set_suspend(name, namespace, context, output, True)


def resume(name: JobName, *, namespace: Namespace = "", context: Context = "", output: Output = None) -> None:
    """Resume a suspended job from its last checkpoint."""
    _set_suspend(name, namespace, context, output, False)


def _set_suspend(text: str, namespace: str, context: str, output: Format | None, value: bool) -> None:
    with report_errors():
        from .client import on_cluster

        job = JobReference.parse(text, namespace)

        async def patch(client: LoraTrainingJobClient) -> Mapping[str, Any]:
            before = await client.get(job.name)
            phase = (before.get("status") or {}).get("phase", "")
            if phase in ("Succeeded", "Failed"):
                raise ClusterError(f"{job} has ended ({phase}){_advice(phase, value)}")
            return await client.patch_spec(job.name, {"runPolicy": {"suspend": value}})

        changed = on_cluster(patch, context, job.namespace)
        if output:
            write(changed, output)
        else:
            say(f"{job} will {'stop; a training saves a checkpoint first' if value else 'resume'}")


def _advice(phase: str, suspend: bool) -> str:
    """Return the end of the message about a job that has ended: what to do instead of suspending or resuming it."""
    if suspend or phase == "Succeeded":
        return f", so it cannot be {'suspended' if suspend else 'resumed'}"
    return ": raise runPolicy.retry to start it again, or submit it under another name"


def logs(
    name: JobName,
    *,
    namespace: Namespace = "",
    context: Context = "",
    stage: Annotated[StageName | None, typer.Option(help="Default: the stage that started last.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the pod ends.")] = False,
) -> None:
    """Print the log of a job's newest pod."""
    with report_errors():
        from lora_operator import names

        from .client import on_cluster

        job = JobReference.parse(name, namespace)

        async def print_log(client: LoraTrainingJobClient) -> None:
            resource = await client.get(job.name)
            pods = await client.pods(resource["metadata"]["uid"])
            pods = [pod for pod in pods if stage in (None, pod["metadata"]["labels"].get(names.STAGE))]
            if not pods:
                raise ClusterError(
                    f"{job} has no pod{f' of stage {stage}' if stage else ''}: it has not started, or its pods "
                    "were removed (runPolicy.childTTLSecondsAfterFinished after the end)"
                )
            async for line in client.log(pods[-1]["metadata"]["name"], follow):
                typer.echo(clean(line))

        try:
            on_cluster(print_log, context, job.namespace)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None
