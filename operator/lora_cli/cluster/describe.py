"""`lora describe|delete`: show one job of a cluster in detail, or delete it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from ..console import err, label, say, write
from ..errors import UsageError, report_errors
from ..exits import Exit
from ..options import Context, JobName, Namespace, Output
from ..references import JobReference

if TYPE_CHECKING:
    from lora_api.status import JobStatus

    from .client import LoraTrainingJobClient

Object = Mapping[str, Any]


def describe(
    name: JobName, *, namespace: Namespace = "", context: Context = "", output: Output = None
) -> None:
    """Show a job's settings, conditions, result and Events."""
    with report_errors():
        from .client import on_cluster

        reference = JobReference.parse(name, namespace)

        async def read(client: LoraTrainingJobClient) -> tuple[Object, list[Object]]:
            job = await client.get(reference.name)
            return job, await client.events(job["metadata"]["uid"])

        job, events = on_cluster(read, context, reference.namespace)
        if output:
            write({"job": job, "events": events}, output)
            return
        for title, value in _summary(job):
            label(title, value)
        _print_conditions(job)
        _print_events(events)


def delete(
    name: JobName,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    namespace: Namespace = "",
    context: Context = "",
    output: Output = None,
) -> None:
    """Delete a job and its pods. What it published stays in the store."""
    with report_errors():
        from .client import on_cluster

        reference = JobReference.parse(name, namespace)
        job = on_cluster(lambda client: client.get(reference.name), context, reference.namespace)
        where = f"{job['metadata']['namespace']}/{job['metadata']['name']}"
        if not yes:
            _confirm(where)
        # Delete by UID, so that a job of the same name that was created meanwhile is kept.
        uid = job["metadata"]["uid"]
        on_cluster(lambda client: client.delete_job(reference.name, uid), context, reference.namespace)
        if output:
            write({"deleted": where, "uid": uid}, output)
        else:
            say(f"{where} deleted")


def _confirm(where: str) -> None:
    """Ask before a job is deleted, and end the command unless the answer is yes."""
    if sys.stdin is None or not sys.stdin.isatty() or not err().is_terminal:
        raise UsageError(f"deleting {where} needs --yes when stdin or stderr is not a terminal")
    try:
        agreed = typer.confirm(f"Delete {where}?", err=True)
    except typer.Abort:
        raise typer.Exit(Exit.INTERRUPTED) from None
    if not agreed:
        say(f"{where} is kept")
        raise typer.Exit(Exit.FAILED)


def _summary(job: Object) -> Iterator[tuple[str, str]]:
    from .table import status_of

    metadata, spec, status = job["metadata"], job["spec"], status_of(job)
    yield "Name", f"{metadata['namespace']}/{metadata['name']}"
    yield "Created", metadata["creationTimestamp"]
    yield "Phase", status.phase
    if status.progress and status.progress.display:
        yield "Progress", status.progress.display
    concept = spec.get("concept", {})
    yield "Concept", f"{concept.get('token')} {concept.get('className')}"
    yield "Images", spec.get("dataset", {}).get("prefix", "")
    for title, field in (("Profile", "profile"), ("Base model", "baseModel")):
        if field in spec:
            yield title, spec[field]
    if status.dataset:
        yield "Trained on", f"{status.dataset.images} images, {len(status.dataset.skipped)} skipped"
        if status.dataset.warnings:
            yield "Warnings", f"{status.dataset.warnings}, the first: {status.dataset.first_warning}"
    if status.captions and status.captions.usage and status.captions.usage.cost_usd is not None:
        yield "Captions", f"{status.captions.total}, {status.captions.usage.cost_usd} USD"
    if status.training and status.training.gpu_seconds is not None:
        attempts = status.training.attempt
        yield (
            "GPU time",
            f"{status.training.gpu_seconds} s in {attempts} attempt{'s' if attempts != 1 else ''}",
        )
    if status.adapter:
        yield "Adapter", status.adapter.uri
        yield "sha256", status.adapter.sha256
    yield from _recipe(spec, status)
    for title, field in (("Annotation", "annotation"), ("Training", "training")):
        if field in spec:
            yield title, yaml.safe_dump(spec[field], default_flow_style=True, width=10_000).strip()


def _recipe(spec: Object, status: JobStatus) -> Iterator[tuple[str, str]]:
    """Yield what the recipe of a job sets. The number of images is known once the captions are written."""
    from lora_api.job import InvalidResourceError, parse_spec

    from ..recipe import describe_recipe, has_recipe

    try:
        parsed = parse_spec(spec, stored=True)
    except InvalidResourceError:
        return  # the conditions name what is wrong with it
    if has_recipe(parsed):
        captions = status.captions
        yield "Recipe", describe_recipe(parsed, captions.total if captions and captions.sha256 else None)


def _print_conditions(job: Object) -> None:
    from .table import status_of

    for condition in status_of(job).conditions:
        what = f"{condition.type:<13}  {condition.status:<7}  {condition.reason}  {condition.message}"
        label("Condition", what.rstrip())


def _print_events(events: list[Object]) -> None:
    for event in events:
        time = event.get("eventTime") or event.get("deprecatedLastTimestamp") or ""
        label("Event", f"{time}  {event.get('type')}  {event.get('reason')}  {event.get('note', '')}")
