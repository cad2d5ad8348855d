"""`lora estimate`: estimate the memory and the time of a training before it is submitted."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from lora_trainer.units import GIB, format_duration

from .console import err, out, say, write
from .errors import UsageError, report_errors
from .exits import Exit
from .job_file import read_job
from .options import Assign, JobPath, Output
from .recipe import count_images, describe_recipe, has_recipe

if TYPE_CHECKING:
    from lora_api.job import JobSpec
    from lora_trainer.train.memory.gpus import Gpu, StepTime
    from lora_trainer.train.memory.plan import Plan

SDXL = Path(str(files("lora_trainer.train").joinpath("model", "sdxl")))
"""The configurations of SDXL base 1.0, without its weights."""
UNITS = {"G": 10**9, "GB": 10**9, "Gi": 2**30, "GiB": 2**30}


def estimate(
    job: JobPath,
    *,
    gpu: Annotated[
        str,
        typer.Option(
            help="GPU (T4, L4, A100, RTX4090, ...), an amount of memory such as 24GiB or 24GB, or cpu. "
            "Default: the GPU of this machine; cpu for a job without GPUs."
        ),
    ] = "",
    model: Annotated[
        Path | None, typer.Option(help="Folder of the base model. Default: the sizes of SDXL base 1.0.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photographs, which a recipe counts. Default: as many as the job takes, dataset.maxImages."
        ),
    ] = None,
    assign: Assign = None,
    output: Output = None,
) -> None:
    """Estimate the memory and time of a job's training; exits with 1 when it does not fit."""
    with report_errors():
        spec = read_job(job, assign or []).spec
        if images is not None and not has_recipe(spec):
            raise UsageError("--images is for jobs with a recipe: set training.recipe, or leave --images out")
        if has_recipe(spec):
            count = count_images(spec, images)
            if not output:
                say(describe_recipe(spec, count))
            spec = spec.with_recipe(count)
        if model is not None and not (model / "unet/config.json").is_file():
            raise UsageError(f"{model} is not a model's folder: it has no unet/config.json")
        with err().status("Tracing a step without weights"):
            result = estimate_job(spec, gpu, model or SDXL)
        if output:
            write(_as_data(spec, result), output)
        else:
            _show(spec, result)
        if not result.plan.fits:
            raise typer.Exit(Exit.FAILED)


@dataclass(frozen=True)
class Estimate:
    """The memory and time of a job's training on a device."""

    device_name: str
    """Name of the device, for messages."""
    plan: Plan
    """The memory; of the variant that needs the most, in a job with variants."""
    time: StepTime
    """The time of a step of that variant."""
    seconds: float
    """Lower bound of the duration of the whole training, with all variants."""
    warning: str = ""
    """What makes the training slow on this device, and the field to change."""


def estimate_job(spec: JobSpec, gpu: str, folder: Path) -> Estimate:
    """Estimate a job's memory and time.

    Args:
        spec: the spec, with the values of its recipe.
        gpu: the value of `--gpu`; empty for this machine's GPU, or its CPU for a job without GPUs.
        folder: the base model's folder; only its configurations are read.

    Raises:
        UsageError: when the GPU is unknown, or none is given and this machine has none.
        BadConfigurationError: when the device does not support the job's settings.
    """
    # On import, bitsandbytes warns of a missing kernel that the estimate does not use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import torch

    from lora_trainer.train.validation import check_capability, find_emulation

    name = gpu or ("" if spec.resources.train.gpus else "cpu")
    device, free, speed = _device(name)
    if device == "cuda":
        check_capability(spec.training, name or "of this machine", speed.capability)
    estimates = []
    for training in spec.training.trainings().values():
        variant = spec.model_copy(update={"training": training})
        plan = make_estimate(variant, folder, device, free)
        time = _time(variant, plan, speed)
        batches = training.gradient_accumulation_steps * training.max_steps
        estimates.append(Estimate(name or "this machine's GPU", plan, time, time.seconds * batches))
    largest = max(estimates, key=lambda each: each.plan.peak)
    return replace(
        largest,
        seconds=sum(each.seconds for each in estimates),
        warning=find_emulation(spec.training, torch.device(device)),
    )


def _device(name: str) -> tuple[str, int, Gpu]:
    """Return the device's type, its free memory in bytes, and its speed.

    Args:
        name: name of a GPU, an amount of memory (the speed is then that of an L4), `cpu`, or empty for this
            machine's GPU.
    """
    from lora_trainer.train.memory.gpus import GPUS, UNSUPPORTED, measure_cpu

    if not name:
        return _local_gpu()
    if name.lower() == "cpu":
        import torch

        from lora_trainer.train.memory.plan import free_memory

        return "cpu", free_memory(torch.device("cpu")), measure_cpu()
    model = name.upper().replace(" ", "")
    if model in UNSUPPORTED:
        major, minor = UNSUPPORTED[model]
        raise UsageError(
            f"--gpu {name}: PyTorch has no kernels for compute capability {major}.{minor}; use a GPU of 7.5 or newer"
        )
    if gpu := GPUS.get(model):
        return "cuda", int(gpu.memory * GIB), gpu
    if amount := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GiB|Gi|GB|G)", name):
        return "cuda", int(float(amount[1]) * UNITS[amount[2]]), GPUS["L4"]
    raise UsageError(f"--gpu {name}: write its memory as 24GiB or 24GB, cpu, or one of: {', '.join(GPUS)}")


def _local_gpu() -> tuple[str, int, Gpu]:
    import torch

    from lora_trainer.train.memory.gpus import GPUS

    if not torch.cuda.is_available():
        raise UsageError(
            "this machine has no GPU to estimate for: name one with --gpu, for example --gpu L4 or --gpu 24GiB "
            f"(known: {', '.join(GPUS)}), or use --gpu cpu"
        )
    # "NVIDIA GeForce RTX 4090" becomes RTX4090, the spelling of GPUS. The speed of an unknown GPU is that of an L4.
    model = re.sub(r"nvidia|geforce|tesla|\s", "", torch.cuda.get_device_name().lower()).upper()
    known = next((gpu for name, gpu in GPUS.items() if model.startswith(name)), GPUS["L4"])
    known = replace(known, capability=torch.cuda.get_device_capability())
    return "cuda", int(torch.cuda.mem_get_info()[0]), known


def make_estimate(spec: JobSpec, folder: Path, device: str, free: int) -> Plan:
    """Plan a job's memory on a device.

    Args:
        folder: the base model's folder; only its configurations are read.
        device: `cuda` or `cpu`.
        free: free memory of the device, in bytes.

    Raises:
        BadConfigurationError: when the device does not support the job's settings.
    """
    import torch

    from lora_trainer.train.memory.plan import Machine, best_plan
    from lora_trainer.train.validation import choose_dtype

    dtype = choose_dtype(spec.training, torch.device(device))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lora"
    return best_plan(spec.training, folder, Machine(device, free, cache), dtype)


def _time(spec: JobSpec, plan: Plan, gpu: Gpu) -> StepTime:
    from lora_api.job import MixedPrecision
    from lora_trainer.train.memory.gpus import step_time

    return step_time(plan.step, gpu, is_float32=spec.training.mixed_precision == MixedPrecision.FP32)


def _show(spec: JobSpec, estimate: Estimate) -> None:
    plan, time, device_name = estimate.plan, estimate.time, estimate.device_name
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("memory while training")
    table.add_column("GiB", justify="right")
    for name, value in plan.terms.items():
        table.add_row(name, f"{value / GIB:.2f}")
    table.add_section()
    for name, value in plan.phases.items():
        style = "bold" if value == plan.peak else ""
        table.add_row(f"total, {name}", f"{value / GIB:.2f}", style=style)
    out().print(table)
    say(
        f"gradient checkpointing {'on' if plan.checkpointing else 'off'}; {spec.training.total_steps} steps: "
        f"at least {format_duration(estimate.seconds)}"
    )
    say(
        f"a batch: {plan.step.flops / 1e12:.3g} TFLOP in {1000 * time.compute:.3g} ms, "
        f"{plan.step.traffic / 1e9:.3g} GB of memory traffic in {1000 * time.memory:.3g} ms, "
        f"{plan.step.operations} operations launched in {1000 * time.launches:.3g} ms"
    )
    if estimate.warning:
        out().print(Text.assemble(("warning", "yellow"), f": {estimate.warning}"), soft_wrap=True)
    peak, free = plan.peak / GIB, plan.free / GIB
    if plan.fits:
        out().print(Text.assemble(("fits", "green"), f": {peak:.2f} GiB of {free:.2f} GiB on {device_name}"))
        return
    from lora_trainer.train.memory.plan import HEADROOM, memory_advice

    advice = memory_advice(spec.training)
    message = (
        f": {peak:.2f} GiB, and {device_name} has {free:.2f} GiB, of which {HEADROOM:.0%} can be used. "
        f"{advice[0].upper()}{advice[1:]}."
    )
    out().print(Text.assemble(("does not fit", "bold red"), message), soft_wrap=True)


def _as_data(spec: JobSpec, estimate: Estimate) -> dict[str, Any]:
    """Return the estimate with camelCase keys; sizes in bytes, times in seconds."""
    plan, time = estimate.plan, estimate.time
    return {
        "fits": plan.fits,
        "bytes": plan.peak,
        "freeBytes": plan.free,
        "terms": {camel(name): value for name, value in plan.terms.items()},
        "phases": {camel(name): value for name, value in plan.phases.items()},
        "gradientCheckpointing": plan.checkpointing,
        "operationsPerStep": plan.step.flops * spec.training.gradient_accumulation_steps,
        "seconds": round(estimate.seconds, 1),
        "warning": estimate.warning,
        "batch": {
            "computeSeconds": time.compute,
            "memorySeconds": time.memory,
            "launchSeconds": time.launches,
        },
    }


def camel(label: str) -> str:
    """Turn a label for people into a key for programs: `UNet, frozen` becomes `unetFrozen`."""
    first, *rest = re.findall(r"[a-z0-9]+", label.lower())
    return "".join([first, *(word.capitalize() for word in rest)])
