"""`lora estimate`: the memory and the time that a job will take, before it is submitted."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from lora_api.job import InvalidResourceError, JobSpec, parse_job_document

from .errors import BadConfigurationError, StepError

if TYPE_CHECKING:
    from .train.gpus import Gpu
    from .train.sizing import Sizes

SDXL = Path(__file__).with_name("train") / "sdxl"
"""The configurations of SDXL base 1.0, without its weights."""
USAGE, TOO_LARGE = 64, 1
GIB = 2**30


def estimate(
    job: Annotated[Path, typer.Argument(help="A LoraTrainingJob in YAML.")],
    *,
    gpu: Annotated[
        str, typer.Option(help="A GPU (T4, L4, A100, RTX4090, ...), an amount such as 24GiB, or cpu.")
    ] = "",
    model: Annotated[
        Path | None,
        typer.Option(help="Folder of the base model; left out, the sizes of SDXL base 1.0 are taken."),
    ] = None,
    output: Annotated[
        Literal["json", "yaml"] | None, typer.Option("--output", "-o", help="For programs.")
    ] = None,
) -> None:
    """Say what memory and time a job's training will take; ends with 1 when it cannot fit."""
    try:
        spec = _read(job)
        if model is not None and not (model / "unet/config.json").is_file():
            raise BadConfigurationError(f"{model} is no model's folder: it has no unet/config.json")
        device, free, found = _device(gpu or ("L4" if spec.resources.train.gpus else "cpu"))
        with Console(stderr=True).status("Going through a step without weights"):
            sizes = _size(spec, model or SDXL, device, free, found)
    except (StepError, InvalidResourceError) as error:
        typer.echo(f"lora: {error}", err=True)
        raise typer.Exit(USAGE) from None
    if output:
        _write(sizes, output)
    else:
        _show(spec, sizes, gpu or ("L4" if device == "cuda" else "cpu"))
    if not sizes.fits:
        raise typer.Exit(TOO_LARGE)


def _read(path: Path) -> JobSpec:
    try:
        return parse_job_document(yaml.safe_load(path.read_text()))[1]
    except OSError as error:
        raise BadConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise BadConfigurationError(f"{path} is no YAML: {error}") from None


def _device(name: str) -> tuple[str, int, Gpu | None]:
    """The device's type, its free memory in bytes, and its speed; without a GPU's name, that of an L4."""
    from .train.gpus import GPUS

    if name.lower() == "cpu":
        import torch

        from .train.plan import free_memory

        return "cpu", free_memory(torch.device("cpu")), None
    if found := GPUS.get(name.upper().replace(" ", "")):
        return "cuda", int(found.memory * GIB), found
    if amount := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:G|Gi|GB|GiB)", name):
        return "cuda", int(float(amount[1]) * GIB), GPUS["L4"]
    raise BadConfigurationError(f"--gpu {name}: write its memory as 24GiB, cpu, or one of: {', '.join(GPUS)}")


def _size(spec: JobSpec, folder: Path, device: str, free: int, gpu: Gpu | None) -> Sizes:
    import torch

    from .train.imports import quick_imports

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses a kernel that nothing here uses
    with quick_imports():
        from .train.plan import Machine
        from .train.settings import choose_dtype, refuse_unsupported
        from .train.sizing import size
    refuse_unsupported(spec.training)
    choose_dtype(spec.training, torch.device(device))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lora"
    return size(spec.training, folder, Machine(device, free, cache), gpu)


def _show(spec: JobSpec, sizes: Sizes, where: str) -> None:
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("memory while training")
    table.add_column("GiB", justify="right")
    for name, value in sizes.plan.terms.items():
        table.add_row(name, f"{value / GIB:.2f}")
    table.add_section()
    for name, value in sizes.phases.items():
        style = "bold" if value == sizes.peak else ""
        table.add_row(f"in all, {name}", f"{value / GIB:.2f}", style=style)
    console.print(table)
    console.print(
        f"gradient checkpointing {'on' if sizes.plan.checkpointing else 'off'}; "
        f"{spec.training.max_steps} steps of {sizes.operations / 1e12:.3g} TFLOP: "
        f"at least {_duration(sizes.seconds)}",
        highlight=False,
    )
    peak, free = sizes.peak / GIB, sizes.plan.free / GIB
    if sizes.fits:
        console.print(f"[green]fits[/]: {peak:.2f} GiB of {free:.2f} GiB on {where}", highlight=False)
        return
    from .train.plan import ADVICE, HEADROOM

    console.print(
        f"[bold red]does not fit[/]: {peak:.2f} GiB, and {where} has {free:.2f} GiB, of which "
        f"{HEADROOM:.0%} can be planned with. {ADVICE[0].upper()}{ADVICE[1:]}.",
        highlight=False,
    )


def _write(sizes: Sizes, form: str) -> None:
    data: dict[str, Any] = {
        "fits": sizes.fits,
        "bytes": sizes.peak,
        "freeBytes": sizes.plan.free,
        "terms": sizes.plan.terms,
        "phases": sizes.phases,
        "gradientCheckpointing": sizes.plan.checkpointing,
        "operationsPerStep": sizes.operations,
        "seconds": round(sizes.seconds, 1),
    }
    typer.echo(
        json.dumps(data, indent=2) if form == "json" else yaml.safe_dump(data, sort_keys=False).rstrip()
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
    )
