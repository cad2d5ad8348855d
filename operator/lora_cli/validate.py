"""`lora validate`: check a job's file without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import say, write
from .errors import UsageError, report_errors
from .job_file import read_jobs
from .options import Assign, JobPaths, Output


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
            from lora_operator.settings import read_profiles

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
        filled = [{**file.document, "spec": file.spec.to_wire()} for file in files]
        if output:
            write(
                filled[0] if len(filled) == 1 else {"apiVersion": "v1", "kind": "List", "items": filled},
                output,
            )
            return
        for file in files:
            say(f"{file.source}: {file.name} is valid")
