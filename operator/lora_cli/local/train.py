"""`lora train` and `lora init`: train on a folder of photographs, or write a job's file for it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_api.training import Recipe

from ..console import Format, say, warn, write
from ..errors import UsageError, report_errors
from ..manifests.hints import find_hints
from ..manifests.writer import dump_yaml
from ..options import Again, Assign, Home, Output, Put
from .new_job import NewJob

if TYPE_CHECKING:
    from ..job_file import JobFile

DRAFT = "draft"
"""Name of the text of a drafted job in messages of the parser. Users do not see it."""
OPTIONS = {
    "metadata.name": "--name",
    "spec.concept.token": "--token",
    "spec.concept.className": "--class",
    "spec.training.maxSteps": "--steps",
}
"""Options that set a field of the drafted job."""
MAX_STEPS = 1_000_000
"""Limit of `training.maxSteps`."""
Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A folder with 5 to 20 photographs of one subject.")
]
Token = Annotated[str, typer.Option(help="The rare word that names the concept, for example CUS.")]
ClassName = Annotated[
    str, typer.Option("--class", help="The ordinary noun for what it is, for example backpack.")
]
Name = Annotated[str, typer.Option(help="Name of the job. Default: like the folder's.")]
Steps = Annotated[
    int | None, typer.Option(min=1, max=MAX_STEPS, help="Training steps. Default: the job's default.")
]
RecipeName = Annotated[
    Recipe,
    typer.Option(
        help="Defaults for the training by the kind of concept and the number of photographs. Person and Style also set "
        "concept.type."
    ),
]
Profiles = Annotated[Path | None, typer.Option(help="Profiles file, as the operator reads it.")]


def train(
    folder: Folder,
    *,
    token: Token,
    class_name: ClassName,
    name: Name = "",
    steps: Steps = None,
    recipe: RecipeName = Recipe.NONE,
    assign: Assign = None,
    print_: Annotated[bool, typer.Option("--print", help="Print the manifest and do not train.")] = False,
    profiles: Profiles = None,
    put: Put = None,
    home: Home = Path(".lora"),
    again: Again = False,
    output: Output = None,
) -> None:
    """Train an adapter from a folder of photographs on this machine, without a job's file."""
    with report_errors():
        file, reason = _make(NewJob(folder, token, class_name, name, steps, recipe), assign or [], profiles)
        if print_:
            write(file.document, output or Format.YAML)
            return
        from .session import Options, run_local

        say(f"{file.name}: {reason}")
        options = Options(
            home=home, images=folder, profiles=profiles, put=tuple(put or ()), again=again, output=output
        )
        raise typer.Exit(run_local(file, options))


def init(
    folder: Folder,
    *,
    token: Token,
    class_name: ClassName,
    name: Name = "",
    steps: Steps = None,
    recipe: RecipeName = Recipe.NONE,
    assign: Assign = None,
    file: Annotated[Path, typer.Option("--file", "-f", help="The file to write; - is stdout.")] = Path(
        "job.yaml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    output: Output = None,
) -> None:
    """Write a job's file for a folder of photographs, for `lora run` and `lora submit`."""
    with report_errors():
        job, reason = _make(NewJob(folder, token, class_name, name, steps, recipe), assign or [], None)
        if str(file) == "-":
            write(job.document, output or Format.YAML)
            return
        if file.exists() and not force:
            raise UsageError(f"{file} exists: name another one with --file, or replace it with --force")
        file.write_text(dump_yaml(job.document))
        if output:
            write(job.document, output)
            return
        say(f"{file} written; {reason}")
        options = f"{shlex.quote(str(file))} --images {shlex.quote(str(folder))}"
        say(f"check it with: lora check {options}")
        say(f"train it with: lora run {options}")


def _make(job: NewJob, assignments: list[str], profiles: Path | None) -> tuple[JobFile, str]:
    """Build a valid job, and warn of settings that often give a bad result.

    Returns:
        The job, and a message that says how its captions are made.
    """
    from ..job_file import InvalidManifestError, parse_job
    from ..profiles import DEFAULT_PROFILE, read_profile
    from .new_job import choose_mode, make_document

    # `--set` can name the profile, which the mode depends on, and the type of the concept, which the previews depend on: the
    # job is built again once they are known.
    mode, reason = choose_mode(job.folder, DEFAULT_PROFILE)
    try:
        [file] = parse_job(dump_yaml(make_document(job, mode)), DRAFT, assignments)
        if profiles is not None:
            mode, reason = choose_mode(job.folder, read_profile(profiles, file.spec.profile))
        [file] = parse_job(dump_yaml(make_document(job, mode, file.spec.concept.type)), DRAFT, assignments)
    except InvalidManifestError as error:
        raise UsageError("\n".join(map(_name_option, str(error).splitlines()))) from None
    for hint in find_hints(file.spec):
        warn(_name_option(hint))
    return file, reason


def _name_option(message: str) -> str:
    """Replace the line number and the field of a problem by the option that set it. The user sees no manifest."""
    message = re.sub(rf"^{DRAFT}:\d+: ", "", message)
    for field, option in OPTIONS.items():
        message = re.sub(rf"^{re.escape(field)}(?=: )", option, message)
    return message
