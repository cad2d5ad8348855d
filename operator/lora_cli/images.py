"""`lora images check`: show how a job would use a folder of images, before it costs time or money."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_api.dataset import Masks
from lora_api.training import Crop

from .console import say, warn, write
from .errors import UsageError, report_errors, require_folder
from .exits import Exit
from .group import verbosity
from .options import Output

if TYPE_CHECKING:
    from lora_trainer.annotate.inspection import Inspection
    from lora_trainer.annotate.masks import MaskMethod

app = typer.Typer(no_args_is_help=True, help="Check images before a job.")


@app.callback()
def images() -> None:
    """Check images before a job."""


@app.command()
@verbosity
def check(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of images, with or without captions.")
    ],
    *,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a contact sheet of the crops and masks to this PNG.")
    ] = None,
    resolution: Annotated[int, typer.Option(help="training.resolution of the job.")] = 1024,
    crop: Annotated[Crop, typer.Option(help="training.crop of the job.")] = Crop.SMART,
    masks: Annotated[Masks, typer.Option(help="annotation.masks of the job.")] = Masks.OWN,
    model: Annotated[
        Path | None, typer.Option(help="Folder of the segmentation model, for --masks Model.")
    ] = None,
    class_name: Annotated[
        str, typer.Option("--class", help="concept.className of the job, for --masks Model.")
    ] = "",
    output: Output = None,
) -> None:
    """Show crops, masks, blur, duplicates and coverage; exits with 1 when there are problems."""
    with report_errors():
        from lora_api.training import Training
        from lora_trainer.annotate.inspection import contact_sheet, inspect_folder

        from .manifests.checks import check_spec

        for problem in check_spec({"training": {"resolution": resolution, "crop": str(crop)}}):
            if problem.path[:2] == ("spec", "training"):
                raise UsageError(f"--resolution: {problem.message}")
        require_folder(folder)
        training = Training(resolution=resolution, crop=crop)
        segment = _segmenter(masks, model, class_name)
        inspection = inspect_folder(folder, training, masks, segment)
        if sheet is not None:
            contact_sheet(inspection).save(sheet, "PNG")
        if output:
            write(_as_data(inspection), output)
        else:
            _print(inspection, sheet)
        if any(image.warnings for image in inspection.images) or inspection.warnings or inspection.bad:
            raise typer.Exit(Exit.FAILED)


def _segmenter(masks: Masks, model: Path | None, class_name: str) -> MaskMethod | None:
    """Return what makes the masks of `--masks Model`; None for other masks."""
    if masks is not Masks.MODEL:
        if model or class_name:
            raise UsageError("--model and --class are for --masks Model: add it, or leave them out")
        return None
    if model is None or not class_name:
        raise UsageError(
            "--masks Model needs --model and --class: the folder of a CLIPSeg model, and what the images show, for "
            "example --model ./clipseg-rd64-refined --class dog"
        )
    if not model.is_dir():
        raise UsageError(f"--model: {model} is not a folder: name the folder of a CLIPSeg model")
    from lora_trainer.annotate.segmentation import Segmenter, prompt_of

    return Segmenter(model, prompt_of(class_name)).mask


def _print(inspection: Inspection, sheet: Path | None) -> None:
    for image in inspection.images:
        left, top, right, bottom = image.crop
        region = f"{left:.2f},{top:.2f} to {right:.2f},{bottom:.2f}"
        problems = f": {'; '.join(image.warnings)}" if image.warnings else ""
        say(
            f"{image.key}  {image.width} x {image.height} {image.format}  crop {region}  sharpness {image.sharpness:g}{problems}"
        )
    for item in inspection.skipped:
        say(f"{item.key}  not used: {item.reason}")
    for warning in inspection.warnings:
        warn(warning)
    for name, counts in inspection.coverage.items():
        say(f"{name}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    captions = len(inspection.captions.captions)
    say(f"{len(inspection.images)} images, {inspection.distinct} different, {captions} with captions")
    if sheet is not None:
        say(f"contact sheet: {sheet}")


def _as_data(inspection: Inspection) -> dict[str, Any]:
    return {
        "images": [
            {
                "file": image.key,
                "width": image.width,
                "height": image.height,
                "crop": list(image.crop),
                "sharpness": image.sharpness,
                "brightness": image.brightness,
                "problems": image.warnings,
            }
            for image in inspection.images
        ],
        "skipped": [{"file": item.key, "reason": item.reason} for item in inspection.skipped],
        "warnings": inspection.warnings,
        "coverage": inspection.coverage,
        "distinct": inspection.distinct,
    }
