"""`lora validate`: check a job's file without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import say, write
from .errors import UsageError, report_errors
from .job_file import read_jobs
from .options import Assign, JobPaths, Output
from .recipe import describe_recipe, has_recipe

if TYPE_CHECKING:
    from lora_api.job import JobSpec


def validate(
    jobs: JobPaths,
    *,
    profiles: Annotated[
        Path | None, typer.Option(help="Profiles file, to check the jobs against their profiles as well.")
    ] = None,
    assign: Assign = None,
    output: Output = None,
) -> None:
    """Check jobs as the API server would, without a cluster; with -o, print them with every default filled in."""
    with report_errors():
        files = read_jobs(jobs, assign or [])
        if profiles is not None:
            # Imported here: a plain check does not need the operator.
            from lora_operator.decide.admission import find_problem

            from .profiles import read_profiles

            known = read_profiles(profiles)
            problems = [
                f"{file.source}: {problem.reason}: {problem.message}"
                for file in files
                if (
                    problem := find_problem(
                        file.spec, file.namespace or "default", known.get(file.spec.profile)
                    )
                )
            ]
            if problems:
                raise UsageError("\n".join(problems))
        filled = [{**file.document, "spec": _filled(file.spec)} for file in files]
        if output:
            write(
                filled[0] if len(filled) == 1 else {"apiVersion": "v1", "kind": "List", "items": filled},
                output,
            )
            return
        for file in files:
            say(f"{file.source}: {file.name} is valid")
            if has_recipe(file.spec):
                say(f"{file.source}: {describe_recipe(file.spec, None)}")


def _filled(spec: JobSpec) -> dict[str, Any]:
    """Return a spec with every default, and with the values of its recipe but those that depend on the images."""
    return spec.effective() if has_recipe(spec) else spec.to_wire()
