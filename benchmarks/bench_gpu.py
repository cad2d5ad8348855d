"""Measure the memory, the time and the kernels that training SDXL needs on this machine's GPU, case by case.

Usage: python -m benchmarks.bench_gpu [--budget 420] [--quick]

Nothing is downloaded: the UNet has SDXL's full size and random weights, created on the GPU from the bundled
configurations. Each case prints one line of JSON, also if it fails. A table follows at the end. The benchmark needs
torch, diffusers, peft, transformers and pydantic. Without bitsandbytes the cases that use it fail, and the others run:

    PYTHONPATH=crds:operator:trainer_image:. python -m benchmarks.bench_gpu

docs/how-to/gpu-bench.md explains the results. The benchmark is one module because all cases and checks share `Subject`,
and their rows form one table.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import active_children, get_context
from pathlib import Path
from statistics import median
from typing import Any

from lora_trainer.units import GIB

ROOT = Path(__file__).resolve().parents[1]
SDXL = ROOT / "trainer_image" / "lora_trainer" / "train" / "model" / "sdxl"
LIBRARIES = ("torch", "diffusers", "peft", "transformers", "accelerate", "bitsandbytes", "pydantic")
WARM_UP = 2
"""Number of first steps that are not timed, in which kernels are loaded and the allocator's pool grows."""


@dataclass(frozen=True)
class Case:
    """One configuration of a training step."""

    name: str
    training: dict[str, Any] = field(default_factory=dict)
    """Fields of `training`, by their names in the resource. They override `BASE`."""
    checkpointing: bool = False
    """Use gradient checkpointing."""
    subject: str = "trainer"
    """`trainer`, or `diffusers`: diffusers' UNet with peft under autocast, as in its training script."""
    graph: bool = False
    """Capture the forward and backward pass as a CUDA graph."""
    benchmark: bool = False
    """Let cuDNN choose convolutions by measuring them."""
    channels_last: bool = False
    """Store the UNet's weights in the memory format channels-last."""
    limit: float = 0
    """GiB that the process may allocate; 0: no limit. With a limit, the memory plan decides about checkpointing."""


BASE = {"rank": 16, "alpha": 16, "optimizer": "AdamW", "mixedPrecision": "fp16", "maxSteps": 100}
CASES = [
    Case("rank 16"),
    Case("diffusers and peft, rank 16", subject="diffusers"),
    Case("rank 16, CUDA graph", graph=True),
    Case("rank 16, checkpointing", checkpointing=True),
    Case("diffusers and peft, checkpointing", checkpointing=True, subject="diffusers"),
    Case("rank 16, bf16", {"mixedPrecision": "bf16"}),
    Case("rank 4", {"rank": 4}),
    Case("rank 128", {"rank": 128}),
    Case("batch 4", {"batchSize": 4}),
    Case("batch 4, CUDA graph", {"batchSize": 4}, graph=True),
    Case("diffusers and peft, batch 4", {"batchSize": 4}, subject="diffusers"),
    Case("DoRA", {"adapter": {"useDoRA": True}}),
    Case("LoKr", {"adapter": {"type": "LoKr"}}),
    Case("LoHa", {"adapter": {"type": "LoHa"}}),
    Case("AdamW8bit", {"optimizer": "AdamW8bit"}),
    Case("Prodigy", {"optimizer": "Prodigy", "learningRate": "1"}),
    Case("Adafactor", {"optimizer": "Adafactor"}),
    Case("NF4", {"quantizeBase": "NF4"}),
    Case("NF4, checkpointing", {"quantizeBase": "NF4"}, checkpointing=True),
    Case("Int8", {"quantizeBase": "Int8"}),
    Case("extract", {"method": "DreamBoothExtract", "optimizer": "AdamW8bit"}),
    Case("cuDNN benchmark", benchmark=True),
    Case("channels last", channels_last=True),
    Case("channels last, cuDNN benchmark", benchmark=True, channels_last=True),
    Case("Auto in 12 GiB", limit=12),
    Case("Auto in 8 GiB", limit=8),
    Case("fp32", {"mixedPrecision": "fp32"}),
]
QUICK = ("rank 16", "diffusers and peft, rank 16", "rank 16, CUDA graph", "rank 16, checkpointing", "LoKr")


class Subject:
    """A UNet with random weights, its trained parameters, its optimizer and a batch."""

    def __init__(self, case: Case, folder: Path, resolution: int) -> None:
        import torch
        from diffusers import DDPMScheduler

        from benchmarks.random_unet import build_unet
        from lora_api.job import Training
        from lora_trainer.train.memory.plan import shape_of
        from lora_trainer.train.overrides.checkpointing import enable_checkpointing
        from lora_trainer.train.validation import DTYPES

        self.case = case
        self.training = Training.model_validate({**BASE, "resolution": resolution, **case.training})
        self.dtype = DTYPES[self.training.mixed_precision]
        self.shape = shape_of(self.training, self.dtype, case.checkpointing)
        self.scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        torch.manual_seed(0)
        self.unet = build_unet(self.training, folder)
        if case.checkpointing and case.subject == "diffusers":
            self.unet.enable_gradient_checkpointing()
        elif case.checkpointing:
            enable_checkpointing(self.unet)
        if case.channels_last:
            self.unet.to(memory_format=torch.channels_last)
        self.batch = self._batch()
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.dtype == torch.float16)
        self._prepare()
        self._graphs: Any = None

    def _batch(self) -> Any:
        import torch

        from lora_trainer.train.data.dataset import LATENT_SCALE
        from lora_trainer.train.memory.workloads import TOKENS
        from lora_trainer.train.objective import Batch

        generator = torch.Generator().manual_seed(0)
        count, side, config = (
            self.training.batch_size,
            self.training.resolution // LATENT_SCALE,
            self.unet.config,
        )
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim

        def normal(*sizes: int) -> Any:
            return torch.randn(sizes, generator=generator).to("cuda")

        return Batch(
            latents=normal(count, config.in_channels, side, side),
            noise=normal(count, config.in_channels, side, side),
            timesteps=torch.arange(count).mul(200).add(100).to("cuda"),
            text=normal(count, TOKENS, config.cross_attention_dim).to(self.dtype),
            pooled=normal(count, pooled).to(self.dtype),
            time_ids=torch.zeros(count, 6).to("cuda"),
            weights=torch.ones(count).to("cuda"),
        )

    def _prepare(self) -> None:
        import torch

        from lora_trainer.train.model.adapter import UNET, trainable
        from lora_trainer.train.model.flat_parameters import FlatParameters
        from lora_trainer.train.model.precision import compute_dtype
        from lora_trainer.train.optimizers import build_optimizer, parameter_groups
        from lora_trainer.train.overrides.fused import fuse
        from lora_trainer.train.overrides.memory_efficient import make_memory_efficient

        parameters = trainable({UNET: self.unet})
        if self.case.subject == "diffusers":
            self.flat = None
            self.parameters = list(parameters.values())
            self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=1e-4, fused=True)
            return
        fuse(self.unet)
        make_memory_efficient(self.unet)
        groups = [group["params"] for group in parameter_groups(self.training, parameters)]
        self.flat = FlatParameters(parameters, groups, compute_dtype(self.training.adapter, self.dtype))
        self.optimizer = build_optimizer(self.training, self.flat.named, self.flat)

    def loss(self, batch: Any) -> Any:
        """Run the forward pass."""
        from lora_trainer.train.objective import predict

        with self._autocast():
            prediction = predict(self.unet, self.scheduler, batch)
        return (prediction - batch.noise).square().mean()

    def backward(self, batch: Any) -> Any:
        """Run the forward and the backward pass. Returns the loss as a tensor on the GPU."""
        loss = self.loss(batch)
        self.scaler.scale(loss).backward()
        if self.flat:
            self.flat.collect()
        return loss.detach()

    def use_graphs(self) -> None:
        """Let steps be CUDA graphs, after the first two."""
        from lora_trainer.train.graphs import PassGraphs

        assert self.flat is not None
        self._graphs = PassGraphs("Always", self.flat, working_memory=0)

    def step(self) -> dict[str, float]:
        """Make one optimizer step in the same way as the trainer.

        Returns:
            the loss; the seconds of the whole step; the seconds until all kernels are launched ("reported"); and the
            seconds after the loss and the norm are read ("optimizer").
        """
        import torch

        started = time.perf_counter()
        if self.flat:
            self.flat.use_compute_copy()
        if self._graphs:
            loss = self._graphs.run(self.batch, self.backward, remaining=1, is_first=True)
        else:
            loss = self.backward(self.batch)
        self.scaler.unscale_(self.optimizer)
        if self.flat:
            norm = self.flat.gradient.norm()
            values = torch.stack([loss.float(), norm]).tolist()
            updated = time.perf_counter()
            self.flat.gradient *= (1 / (norm + 1e-6)).clamp(max=1.0)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.flat.gradient.zero_()
        else:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            values = torch.stack([loss.float(), norm]).tolist()
            updated = time.perf_counter()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
        reported = time.perf_counter()
        torch.cuda.synchronize()
        ended = time.perf_counter()
        return {
            "loss": values[0],
            "seconds": ended - started,
            "reported": reported - started,
            "optimizer": ended - updated,
        }

    def _autocast(self) -> AbstractContextManager[object]:
        import torch

        from lora_trainer.train.model.precision import autocast

        if self.case.subject == "diffusers":
            enabled = self.dtype != torch.float32
            return torch.autocast("cuda", self.dtype) if enabled else nullcontext()
        return autocast("cuda", self.training.adapter, self.dtype)


# Cases ---------------------------------------------------------------------------------------------------------


def run_case(case: Case, folder: Path, resolution: int, steps: int, plans: dict[str, Any]) -> dict[str, Any]:
    """Train a few steps and measure them.

    Args:
        folder: the folder of the model's configurations.
        resolution: side of the images, in pixels.
        steps: number of timed steps.
        plans: what `make_plans` returned.
    """
    import torch

    if case.limit:
        fits = plans.get(f"{case.name} fits")
        case = replace(case, checkpointing=bool(fits and not fits["whole"]))
        _limit_memory(case.limit)
    torch.backends.cudnn.benchmark = case.benchmark
    before = torch.cuda.memory_allocated()
    subject = Subject(case, folder, resolution)
    loaded = torch.cuda.memory_allocated() - before
    if case.graph:
        subject.use_graphs()
    measured = [subject.step() for _ in range(WARM_UP + case.graph)]  # the third step captures
    first = len(measured)
    torch.cuda.reset_peak_memory_stats()
    measured += [subject.step() for _ in range(steps)]
    timed = measured[first:]
    row = {
        "ms": 1000 * median(step["seconds"] for step in timed),
        "reported_ms": 1000 * median(step["reported"] for step in timed),
        "optimizer_ms": 1000 * median(step["optimizer"] for step in timed),
        "allocated_gib": torch.cuda.max_memory_allocated() / GIB,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
        "loaded_gib": loaded / GIB,
        "losses": [round(step["loss"], 4) for step in measured],
        "checkpointing": case.checkpointing,
    }
    plan = plans.get(case.name)
    if plan and not case.limit and not case.graph:
        # The plan's working memory, and the measured memory beyond the weights, gradients and optimizer states. A graph
        # holds its working memory between steps too.
        row["planned_gib"] = plan["peak"] / GIB
        row["measured_gib"] = row["allocated_gib"] - _allocated_between_steps(subject) / GIB
    return row


def _allocated_between_steps(subject: Subject) -> int:
    """Return the bytes that are allocated between two steps: weights, gradients and optimizer states."""
    import torch

    gc.collect()
    torch.cuda.synchronize()
    return int(torch.cuda.memory_allocated())


def _limit_memory(gib: float) -> None:
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total))


def profile_step(folder: Path, resolution: int) -> dict[str, Any]:
    """Count the kernels of a step and measure the time in which the GPU is busy."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if torch.version.cuda is None:
        raise RuntimeError("a profile needs a build of PyTorch with CUDA")
    rows: dict[str, Any] = {}
    for subject_name in ("trainer", "diffusers"):
        subject = Subject(Case("profile", subject=subject_name), folder, resolution)
        for _ in range(WARM_UP):
            subject.step()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            seconds = subject.step()["seconds"]
        kernels = [event for event in profiler.events() if event.device_type.name == "CUDA"]
        busy = sum(event.device_time for event in kernels) / 1e6
        rows |= {
            f"{subject_name}_kernels": len(kernels),
            f"{subject_name}_busy_ms": 1000 * busy,
            f"{subject_name}_profiled_ms": 1000 * seconds,
        }
        longest = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)[:8]
        rows[f"{subject_name}_longest"] = {
            event.key[:60]: round(event.self_device_time_total / 1000, 2) for event in longest
        }
        del subject, profiler, kernels, longest
        _free()
    return rows


def encode_images(folder: Path, resolution: int) -> dict[str, Any]:
    """Encode and decode an image in each number format: time, memory, and the error relative to float32."""
    import torch
    from diffusers import AutoencoderKL

    from benchmarks.random_unet import randomize

    with torch.device("meta"):
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae"))
    vae = vae.to_empty(device="cuda").eval()
    randomize(vae)
    image = torch.randn(1, 3, resolution, resolution, generator=torch.Generator().manual_seed(0)).to("cuda")
    rows: dict[str, Any] = {}
    exact: Any = None
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
        vae.to(dtype)
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            vae.encode(image.to(dtype))
            torch.cuda.synchronize()
            started = time.perf_counter()
            mean = vae.encode(image.to(dtype)).latent_dist.mean.float()
            torch.cuda.synchronize()
            rows[f"{name}_encode_ms"] = 1000 * (time.perf_counter() - started)
            vae.decode(torch.randn_like(mean).to(dtype))
        exact = mean if exact is None else exact
        rows[f"{name}_error"] = float((mean - exact).norm() / exact.norm())
        rows[f"{name}_peak_gib"] = torch.cuda.max_memory_allocated() / GIB
    return rows


def run_out_of_memory(folder: Path, resolution: int) -> dict[str, Any]:
    """Provoke an out-of-memory error and return whether the trainer recognises it."""
    import torch

    from lora_trainer.train.memory.errors import is_out_of_memory

    _limit_memory(torch.cuda.memory_allocated() / GIB + 0.5)
    try:
        torch.empty(2 * GIB, dtype=torch.uint8, device="cuda")
    except Exception as error:
        return {
            "exception": type(error).__name__,
            "recognised": is_out_of_memory(error),
            "text": str(error)[:200],
        }
    raise AssertionError("two GiB were allocated within a limit of half a GiB")


def resume(folder: Path, resolution: int) -> dict[str, Any]:
    """Stop after three steps in fp16, restore the state into a new subject, and compare the next three losses."""
    import torch

    from lora_trainer.train.optimizers import optimizer_state, restore_optimizer

    case = Case("resume", {"rank": 4})
    original = Subject(case, folder, resolution)
    for _ in range(3):
        original.step()
    assert original.flat is not None
    values, scaler = original.flat.values.detach().cpu().clone(), original.scaler.state_dict()
    tensors, rest = optimizer_state(original.optimizer)
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    expected = [original.step()["loss"] for _ in range(3)]
    weights = {
        name: tensor.cpu() for name, tensor in original.unet.state_dict().items() if "lora_" not in name
    }
    del original
    _free()
    resumed = Subject(case, folder, resolution)
    resumed.unet.load_state_dict(weights, strict=False)
    assert resumed.flat is not None
    with torch.no_grad():
        resumed.flat.values.copy_(values)
    restore_optimizer(resumed.optimizer, tensors, rest)
    resumed.scaler.load_state_dict(scaler)
    losses = [resumed.step()["loss"] for _ in range(3)]
    return {
        "expected": expected,
        "resumed": losses,
        "difference": max(abs(a - b) for a, b in zip(expected, losses, strict=True)),
    }


def environment() -> dict[str, Any]:
    """Describe the machine: GPU, versions, and the memory of the CUDA context."""
    import torch

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "missing"

    free_before = torch.cuda.mem_get_info()
    torch.zeros(1, device="cuda")
    free, total = torch.cuda.mem_get_info()
    return {
        "gpu": torch.cuda.get_device_name(0),
        "capability": list(torch.cuda.get_device_capability(0)),
        "total_gib": total / GIB,
        "free_gib": free_before[0] / GIB,
        "free_after_context_gib": free / GIB,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        **{name: installed(name) for name in LIBRARIES},
    }


# Plans, in processes of their own ---------------------------------------------------------------------------------


def plan_case(case: Case, folder: Path, resolution: int) -> dict[str, Any]:
    """Trace a case's step without a GPU and return its memory in bytes."""
    from dataclasses import asdict

    from lora_api.job import Training
    from lora_trainer.train.memory.plan import Machine, make_plan, shape_of
    from lora_trainer.train.memory.workloads import trace_step
    from lora_trainer.train.validation import DTYPES

    training = Training.model_validate({**BASE, "resolution": resolution, **case.training})
    dtype = DTYPES[training.mixed_precision]
    with tempfile.TemporaryDirectory() as cache:
        if case.limit:
            plan = make_plan(training, folder, Machine("cuda", int(case.limit * GIB), Path(cache)), dtype)
            return {"whole": not plan.checkpointing, **asdict(plan.step)}
        return asdict(trace_step(folder, shape_of(training, dtype, case.checkpointing), Path(cache)).trace)


def make_plans(cases: Sequence[Case], folder: Path, resolution: int, seconds: float) -> dict[str, Any]:
    """Trace all cases in parallel processes that cannot see the GPU. Cases that take too long are omitted.

    Args:
        seconds: time limit for all cases together.

    Returns:
        the plans by the case's name, with " fits" behind it for cases with a memory limit.
    """
    planned = [case for case in cases if case.subject == "trainer"]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in hidden}
    os.environ.update(hidden)
    deadline = time.monotonic() + seconds
    workers = max(1, min(len(planned), (os.cpu_count() or 2) - 2))
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    futures: dict[str, Future[dict[str, Any]]] = {
        case.name: pool.submit(plan_case, case, folder, resolution) for case in planned
    }
    plans: dict[str, Any] = {}
    for case in planned:
        try:
            plan = futures[case.name].result(timeout=max(0.1, deadline - time.monotonic()))
            plans[f"{case.name} fits" if case.limit else case.name] = plan
        except Exception as error:
            print_row({"case": f"plan of {case.name}", "error": f"{type(error).__name__}: {error}"[:300]})
    pool.shutdown(wait=False, cancel_futures=True)
    for process in active_children():  # a trace that still runs would disturb the measurements
        process.kill()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    return plans


# The run -------------------------------------------------------------------------------------------------------


def print_row(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


def run_guarded(name: str, work: Callable[[], dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Run a case, print its row and append it to the rows. An exception becomes part of the row."""
    started = time.monotonic()
    row: dict[str, Any] = {"case": name}
    try:
        row |= work()
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:500]
        row["where"] = traceback.format_exc(limit=-2)[-600:]
        error.__traceback__ = None
    row["took"] = round(time.monotonic() - started, 1)
    rows.append(row)
    print_row(row)
    _free()


def _free() -> None:
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0)


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'case':<36}{'ms/step':>9}{'optimizer':>11}{'peak GiB':>10}{'planned':>9}{'measured':>10}"]
    for row in rows:
        if "ms" in row:
            plan = f"{row['planned_gib']:>9.2f}{row['measured_gib']:>10.2f}" if "planned_gib" in row else ""
            lines.append(
                f"{row['case']:<36}{row['ms']:>9.1f}{row['optimizer_ms']:>11.1f}{row['allocated_gib']:>10.2f}{plan}"
            )
        elif "error" in row:
            lines.append(f"{row['case']:<36}  {row['error'][:80]}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--budget", type=float, default=420, help="seconds after which no case is started")
    parser.add_argument("--quick", action="store_true", help="five cases")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a case")
    parser.add_argument(
        "--model", type=Path, default=SDXL, help="a pipeline's folder; its configurations are read"
    )
    parser.add_argument("--resolution", type=int, default=1024)
    args = parser.parse_args()
    started = time.monotonic()
    import torch

    if not torch.cuda.is_available():
        sys.exit("no GPU is visible to PyTorch")
    cases = [case for case in CASES if not args.quick or case.name in QUICK]
    rows: list[dict[str, Any]] = []
    run_guarded("environment", environment, rows)
    plans = make_plans(cases, args.model, args.resolution, args.budget / 4)
    print_row({"case": "plans", "took": round(time.monotonic() - started, 1), "traced": sorted(plans)})
    extra = [
        ("profile", lambda: profile_step(args.model, args.resolution)),
        ("VAE", lambda: encode_images(args.model, args.resolution)),
        ("resume in fp16", lambda: resume(args.model, args.resolution)),
        ("out of memory", lambda: run_out_of_memory(args.model, args.resolution)),
    ]
    work: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        (case.name, lambda case=case: run_case(case, args.model, args.resolution, args.steps, plans))  # type: ignore[misc]
        for case in cases
    ]
    # The most important cases come first, since the budget may not be enough for all.
    work[5:5] = [] if args.quick else extra
    for name, function in work:
        if time.monotonic() - started > args.budget:
            print_row({"case": name, "error": "not started: the budget is used up"})
            continue
        run_guarded(name, function, rows)
    print(f"\n{table(rows)}\n{time.monotonic() - started:.0f} seconds", flush=True)
    os._exit(0)  # does not wait for workers that are still tracing


if __name__ == "__main__":
    main()
