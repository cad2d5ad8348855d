"""`lora check`: check everything that a job needs before it costs time or money."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_trainer.units import GIB, format_duration

from .console import Format, clean, out, say, write
from .errors import CommandError, report_errors
from .exits import Exit
from .job_file import JobFile, read_job
from .options import Assign, Home, JobPath, Output
from .recipe import count_images, describe_recipe, has_recipe

if TYPE_CHECKING:
    from lora_api.job import JobSpec
    from lora_api.profile import Profile

MODEL_BYTES, WORK_BYTES = 7 * GIB, 3 * GIB
"""Bytes on disk: SDXL base 1.0 in 16 bits with its VAE, and the checkpoints, images and adapter of a run."""
INPUT_TOKENS, OUTPUT_TOKENS = 2_500, 150
"""Usual tokens of one request for a caption to a Claude model, with an image of 768 pixels. Not limits."""


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    verdict: Verdict
    message: str


def check(
    job: JobPath,
    *,
    images: Annotated[Path | None, typer.Option(help="Folder of photographs, as for `lora run`.")] = None,
    profiles: Annotated[Path | None, typer.Option(help="Profiles file, as the operator reads it.")] = None,
    gpu: Annotated[
        str, typer.Option(help="GPU to train on, as for `lora estimate`. Default: that of this machine.")
    ] = "",
    gpu_hour: Annotated[
        float | None, typer.Option("--gpu-hour-usd", min=0, help="USD for an hour of the GPU.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder of the base model, as for `lora estimate`.")
    ] = None,
    home: Home = Path(".lora"),
    assign: Assign = None,
    output: Output = None,
) -> None:
    """Check a job's key, GPU, disk, images, cost and time before it runs; exits with 1 when something is missing."""
    with report_errors():
        from .profiles import read_profile

        file = read_job(job, assign or [])
        profile = read_profile(profiles, file.spec.profile)
        findings = [
            *_check_profile(file, profile),
            *_check_key(file.spec, profile, images),
            *check_images(file.spec, images),
            *_check_masks(file.spec),
            *_check_recipe(file.spec, images),
            *_check_cost(file.spec, profile, images),
            *_check_disk(file.spec, home),
            *_check_gpu(_with_recipe(file.spec, images), gpu, gpu_hour, model),
        ]
        _print(findings, output)
        if any(finding.verdict == Verdict.FAILED for finding in findings):
            raise typer.Exit(Exit.FAILED)


def _check_profile(file: JobFile, profile: Profile) -> Iterator[Finding]:
    from lora_operator.decide.admission import find_problem

    problem = find_problem(file.spec, file.namespace or "default", profile)
    if problem:
        yield Finding("profile", Verdict.FAILED, f"{problem.reason}: {problem.message}")
    else:
        yield Finding("profile", Verdict.OK, "allows the job, its base model and its language model")


def _check_key(spec: JobSpec, profile: Profile, images: Path | None) -> Iterator[Finding]:
    from .local.preflight import require_key

    try:
        require_key(spec, profile, images)
    except CommandError as error:
        yield Finding("key", Verdict.FAILED, str(error))
    else:
        yield Finding("key", Verdict.OK, "set, or not needed")


def check_images(spec: JobSpec, folder: Path | None) -> Iterator[Finding]:
    """Check the number, readability, sharpness and duplicates of images, with the rules of the annotation stage."""
    from lora_trainer.annotate.inspection import inspect_folder
    from lora_trainer.errors import StageError

    if folder is None:
        yield Finding("images", Verdict.WARNING, "not checked: name their folder with --images")
        return
    try:
        inspection = inspect_folder(folder, spec.training, spec.annotation.masks)
    except StageError as error:
        yield Finding("images", Verdict.FAILED, str(error))
        return
    for item in inspection.bad:
        yield Finding("images", Verdict.FAILED, f"{item.key}: {item.reason}")
    for item in inspection.ignored:
        yield Finding("images", Verdict.WARNING, f"{item.key}: {item.reason}")
    for image in inspection.images:
        for warning in image.warnings:
            yield Finding("images", Verdict.WARNING, f"{image.key}: {warning}")
    for warning in inspection.warnings:
        yield Finding("images", Verdict.WARNING, warning)
    low, high = spec.dataset.min_images, spec.dataset.max_images
    fits = low <= inspection.distinct and len(inspection.images) <= high
    message = f"{inspection.distinct} different images; the job takes {low} to {high}"
    yield Finding("images", Verdict.OK if fits else Verdict.FAILED, message)


def _check_masks(spec: JobSpec) -> Iterator[Finding]:
    """Say how to see the masks that a model makes. It is not loaded here, which would take a download and minutes."""
    from lora_api.job import Masks

    if spec.annotation.masks is Masks.MODEL:
        yield Finding(
            "masks",
            Verdict.WARNING,
            f"not checked: see them with `lora images check DIR --masks Model --model MODEL --class "
            f"'{spec.concept.class_name}' --sheet sheet.png`",
        )


def _check_recipe(spec: JobSpec, images: Path | None) -> Iterator[Finding]:
    if has_recipe(spec):
        yield Finding("recipe", Verdict.OK, describe_recipe(spec, _count_images(spec, images)))


def _with_recipe(spec: JobSpec, images: Path | None) -> JobSpec:
    return spec.with_recipe(_count_images(spec, images)) if has_recipe(spec) else spec


def _count_images(spec: JobSpec, images: Path | None) -> int:
    """Count the images of a folder; return the most that the job takes where there is none to count."""
    from lora_trainer.errors import StageError

    try:
        return count_images(spec, images)
    except (CommandError, StageError):  # check_images reports a folder without images
        return spec.dataset.max_images


def _check_cost(spec: JobSpec, profile: Profile, images: Path | None) -> Iterator[Finding]:
    """Compare the usual cost of the captions, at the profile's prices, with the job's limit."""
    from lora_api.job import AnnotationMode
    from lora_trainer.annotate.budget import DEFAULT_LIMIT

    if spec.annotation.mode != AnnotationMode.LLM or profile.llm is None:
        yield Finding("captions", Verdict.OK, "cost nothing: no language model is asked")
        return
    count = _count_images(spec, images)
    name = profile.llm.choose(spec.annotation.model) or ""
    price = profile.llm.prices.get(name)
    if price is None:
        yield Finding("captions", Verdict.WARNING, f"cost: the profile has no price for {name}")
        return
    cost = count * (INPUT_TOKENS * price.input + OUTPUT_TOKENS * price.output) / Decimal(1_000_000)
    limit = spec.annotation.limits.max_cost_usd
    limit = DEFAULT_LIMIT if limit is None else limit
    over = cost > limit
    message = f"about {cost:.4f} USD for {count} images by {name}; the job's limit is {limit} USD"
    yield Finding("captions", Verdict.FAILED if over else Verdict.OK, message)


def _check_disk(spec: JobSpec, home: Path) -> Iterator[Finding]:
    folder = home.absolute()  # may not exist yet: the nearest existing parent is on the same disk
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    is_cached = any((home / "cache").glob("*"))
    # Only the size of SDXL base 1.0 is known. For another model no download is counted.
    needs_download = spec.base_model == "sdxl-base-1.0" and not is_cached
    needed = WORK_BYTES + (MODEL_BYTES if needs_download else 0)
    message = f"{free / GIB:.1f} GiB are free for {home}; about {needed / GIB:.0f} GiB are needed"
    yield Finding("disk", Verdict.OK if free >= needed else Verdict.FAILED, message)


def _check_gpu(spec: JobSpec, gpu: str, gpu_hour: float | None, model: Path | None) -> Iterator[Finding]:
    from lora_trainer.errors import StageError

    from .estimate import SDXL, estimate_job

    try:
        result = estimate_job(spec, gpu, model or SDXL)
    except (CommandError, StageError) as error:
        yield Finding("gpu", Verdict.FAILED, str(error))
        return
    peak, free = result.plan.peak / GIB, result.plan.free / GIB
    fits = "fits" if result.plan.fits else "does not fit"
    message = f"{fits}: {peak:.1f} GiB of {free:.1f} GiB on {result.device_name}"
    yield Finding("gpu", Verdict.OK if result.plan.fits else Verdict.FAILED, message)
    if result.warning:
        yield Finding("gpu", Verdict.WARNING, result.warning)
    text = f"at least {format_duration(result.seconds)}"
    if gpu_hour is not None:
        text += f", {result.seconds / 3600 * gpu_hour * max(1, spec.resources.train.gpus):.2f} USD"
    yield Finding("time", Verdict.OK, text)


def _print(findings: list[Finding], output: Format | None) -> None:
    if output:
        rows = [{"name": f.name, "verdict": str(f.verdict), "message": f.message} for f in findings]
        write({"ok": all(f.verdict != Verdict.FAILED for f in findings), "findings": rows}, output)
        return
    from rich.text import Text

    styles = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILED: "bold red"}
    for finding in findings:
        line = Text(f"{finding.verdict:<8}", styles[finding.verdict])
        line.append(f" {finding.name:<9} {clean(finding.message)}", "")
        out().print(line, soft_wrap=True)
    if all(finding.verdict != Verdict.FAILED for finding in findings):
        say("ready to run")
