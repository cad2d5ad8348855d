"""`lora validate|submit|list|suspend|resume|logs`: jobs made, looked at and held."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_api.job import InvalidResourceError
from lora_api.steps import StepName

from .. import names
from ..api import Object
from ..decide.admission import find_problem
from ..jobfile import UsageError, read_job
from ..settings import read_profiles
from .connection import ClusterError, Jobs
from .options import (
    Assign,
    Context,
    Everywhere,
    Format,
    Name,
    Namespace,
    Output,
    console,
    on_cluster,
    plainly,
    write,
)
from .table import by_phase, show

JobPath = Annotated[Path, typer.Argument(help="A LoraTrainingJob in YAML.")]


def validate(
    job: JobPath,
    *,
    profiles: Annotated[
        Path | None, typer.Option(help="Profiles file, to check the job against its profile as well.")
    ] = None,
    assign: Assign = None,
    output: Output = None,
) -> None:
    """Check a job's file without a cluster; with -o, print it with every default filled in."""
    with plainly():
        file = read_job(job, assign or [])
        if profiles is not None:
            profile = read_profiles(profiles).get(file.spec.profile)
            if problem := find_problem(file.spec, file.namespace or "default", profile):
                raise InvalidResourceError(f"{problem.reason}: {problem.message}")
        if output:
            write({**file.document, "spec": file.spec.to_wire()}, output)
        else:
            console.print(f"{job} is valid", highlight=False)


def submit(
    job: JobPath,
    *,
    namespace: Namespace = "",
    context: Context = "",
    assign: Assign = None,
    dry_run: Annotated[bool, typer.Option(help="Ask the API server, and make nothing.")] = False,
    output: Output = None,
) -> None:
    """Make a job in the cluster, after the checks that need none."""
    with plainly():
        file = read_job(job, assign or [])
        if namespace and file.namespace and namespace != file.namespace:
            raise UsageError(f"{job} is for namespace {file.namespace!r}: leave out -n, or change the file")
        made = on_cluster(
            lambda jobs: jobs.make(file.document, dry_run), context, namespace or file.namespace
        )
        if output:
            write(made, output)
            return
        where, name = made["metadata"]["namespace"], made["metadata"]["name"]
        if dry_run:
            console.print(f"{where}/{name} would be accepted", highlight=False)
        else:
            console.print(f"{where}/{name} made; see it with: lora watch {name} -n {where}", highlight=False)


def list_(
    *,
    namespace: Namespace = "",
    everywhere: Everywhere = False,
    context: Context = "",
    output: Output = None,
) -> None:
    """Show jobs, those at work first."""
    with plainly():
        found, _ = on_cluster(lambda jobs: jobs.all(everywhere), context, namespace)
        if output:
            write({"apiVersion": "v1", "kind": "List", "items": found}, output)
        elif found:
            console.print(show(by_phase(found), everywhere, datetime.now(UTC)))
        else:
            console.print("no jobs here; `lora list -A` shows those of every namespace")


def suspend(name: Name, *, namespace: Namespace = "", context: Context = "", output: Output = None) -> None:
    """Stop a job once its checkpoint is saved; `lora resume` goes on from there."""
    _set_suspend(name, namespace, context, output, True)


def resume(name: Name, *, namespace: Namespace = "", context: Context = "", output: Output = None) -> None:
    """Go on with a suspended job."""
    _set_suspend(name, namespace, context, output, False)


def _set_suspend(name: str, namespace: str, context: str, output: Format | None, value: bool) -> None:
    async def work(jobs: Jobs) -> Object:
        before = await jobs.get(name)
        phase = (before.get("status") or {}).get("phase", "")
        if phase in ("Succeeded", "Failed"):
            raise ClusterError(f"{name} has ended ({phase}): make it again under another name")
        return await jobs.change(name, {"runPolicy": {"suspend": value}})

    with plainly():
        changed = on_cluster(work, context, namespace)
        if output:
            write(changed, output)
        else:
            console.print(f"{name} will {'stop after its next checkpoint' if value else 'go on'}")


def logs(
    name: Name,
    *,
    namespace: Namespace = "",
    context: Context = "",
    step: Annotated[StepName | None, typer.Option(help="Left out, the step that came last.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the pod ends.")] = False,
) -> None:
    """Print the log of a job's newest pod."""

    async def work(jobs: Jobs) -> None:
        job = await jobs.get(name)
        pods = [pod for pod in await jobs.pods(job["metadata"]["uid"]) if step in (None, _step(pod))]
        if not pods:
            raise ClusterError(
                f"{name} has no pod{f' of step {step}' if step else ''} now: it has not started, or its pods "
                "were removed (runPolicy.childTTLSecondsAfterFinished after the end)"
            )
        async for line in jobs.log(pods[-1]["metadata"]["name"], follow):
            typer.echo(line)

    with plainly():
        try:
            on_cluster(work, context, namespace)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def _step(pod: Mapping[str, Any]) -> StepName:
    return StepName(pod["metadata"]["labels"][names.STEP])
