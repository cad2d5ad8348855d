"""Train a model of SDXL's full size on this machine's CPU, and compare with a loop that follows diffusers' script.

Usage: python -m benchmarks.full_size [--steps 8] [--keep FOLDER] [--gpu]

A pipeline of SDXL's sizes with random bf16 weights (6.5 GB) is written, and `lora run` trains a LoRA adapter on it in
bf16 at 256 px, from photographs to the published adapter. The loop is `tests/support/reference_trainer.py` in bf16: like
diffusers' script, it loads the weights in float32 and encodes an image and a caption in every step. Both run without
gradient checkpointing, in processes of their own, one after the other. It takes about four minutes on two cores that have instructions
for bf16 (AVX512 or AMX), 25 GB of disk and 16 GB of memory. The last line of the output is machine-readable:

full_speedup        median time of a step of the loop, relative to the trainer's
full_memory_ratio   peak memory of the trainer's process, relative to the loop's
full_plan_error     difference of the memory plan from the trainer's peak, relative to the peak

With --gpu, `lora run` trains on this machine's GPU at 1024 px, with the default settings and previews, and nothing is
compared: bench_gpu does so. The last line then has the seconds of the whole run, the median of a step, and the peak and
the plan's error as above.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SDXL = ROOT / "trainer_image" / "lora_trainer" / "train" / "model" / "sdxl"
NAME, JOB = "sdxl-random", "full-size"
IMAGES = 5
ENVIRONMENT = dict(os.environ)
"""Environment of both runs. The tests, from which parts are imported, limit the threads of their own process."""
NEEDED = 16
"""GiB of available memory that the loop needs."""
TRAINING = {
    "resolution": 256,
    "rank": 16,
    "optimizer": "AdamW",
    "mixedPrecision": "bf16",
    "gradientCheckpointing": "Never",
    "preview": {"numInferenceSteps": 1},
}
ON_GPU = {"resolution": 1024, "preview": {"numInferenceSteps": 25}}


def write_model(folder: Path) -> None:
    """Write a pipeline of SDXL's sizes with random weights, part by part, so that one part is in memory at a time."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from benchmarks.random_unet import randomize
    from lora_trainer.train.model.tiny import END, sdxl_scheduler, tiny_tokenizer

    torch.manual_seed(0)
    texts: Any = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    models: Any = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    for part in (*texts, *models):
        with torch.device("meta"):
            if part in texts:
                module = texts[part](CLIPTextConfig.from_pretrained(SDXL, subfolder=part))
            else:
                module = models[part].from_config(models[part].load_config(SDXL, subfolder=part))
        module = module.to(torch.bfloat16).to_empty(device="cpu")
        randomize(module)
        for buffer_name, buffer in module.named_buffers():
            if buffer_name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]))
        module.save_pretrained(folder / part)
        del module
    for part, pad in (("tokenizer", END), ("tokenizer_2", "!")):
        tiny_tokenizer(pad=pad).save_pretrained(folder / part)
    sdxl_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "force_zeros_for_empty_prompt": True,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))


def write_job(folder: Path, steps: int, gpu: bool) -> None:
    """Write images with captions, a job for the GPU or the CPU, and a profile."""
    from PIL import Image

    from tests.conftest import draw_photograph

    images = folder / "images"
    images.mkdir()
    lines = []
    for index in range(IMAGES):
        drawn = Image.open(draw_photograph(folder / f"{index}.jpg", index)).convert("RGB")
        name = f"{index:03d}.png"
        side = 1024 if gpu else 512
        drawn.resize((side, side)).save(images / name)
        lines.append(json.dumps({"file_name": name, "text": f"a photo of CUS statue, view {index}"}))
    (images / "metadata.jsonl").write_text("\n".join(lines))
    spec = {
        "dataset": {"prefix": "full-size/"},
        "concept": {"token": "CUS", "className": "statue"},
        "annotation": {"mode": "Existing"},
        "baseModel": NAME,
        "training": {**(ON_GPU if gpu else TRAINING), "maxSteps": steps},
        "output": {"reuse": "Never"},
        "resources": {"train": {"gpus": int(gpu), "cpu": str(os.cpu_count()), "memory": "16Gi"}},
    }
    job = {
        "apiVersion": "lora-training.io/v1alpha1",
        "kind": "LoraTrainingJob",
        "metadata": {"name": JOB, "namespace": "default"},
        "spec": spec,
    }
    profile = {
        "store": {"endpoint": "localhost:9000", "secure": False},
        "models": {NAME: {"source": "store", "key": f"models/{NAME}/"}},
    }
    (folder / "job.yaml").write_text(json.dumps(job))
    (folder / "profiles.yaml").write_text(json.dumps({"profiles": {"default": profile}}))


def run_trainer(folder: Path) -> dict[str, Any]:
    """Run the job by `lora run`, and return what its manifest and its records say, and the peak memory."""
    home = folder / "home"
    command = [str(Path(sys.executable).with_name("lora")), "run", str(folder / "job.yaml"), "--verbose"]
    command += ["--profiles", str(folder / "profiles.yaml"), "--images", str(folder / "images")]
    command += ["--put", f"{folder / 'model'}:models/{NAME}", "--home", str(home)]
    # Not subprocess.run: the peak of a process and its descendants comes from wait4.
    process = subprocess.Popen(command, env=ENVIRONMENT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"lora run failed with {os.waitstatus_to_exitcode(status)}")
    results = home / "runs" / "default" / JOB / "result"
    manifest = json.loads((results / "manifest.json").read_text())
    records = [json.loads(line) for line in (results / "metrics.jsonl").read_text().splitlines()]
    memory = manifest["memory"]
    return {
        "seconds": median(record["seconds"] for record in records[1:]),
        "peak": usage.ru_maxrss * 1024,
        "planned": memory["plannedBytes"],
        "gpu_peak": memory.get("peakBytes"),
        "losses": [round(record["loss"], 4) for record in records],
    }


def run_loop(folder: Path, steps: int) -> None:
    """Run the reference loop in bf16, and print what `run_trainer` returns."""
    import torch

    from lora_api.job import Training
    from tests.support.reference_trainer import Reference

    class Loop(Reference):
        """The reference with frozen weights in bf16, and a VAE in float32, as in diffusers' script."""

        def posterior(self, image: bytes) -> Any:
            with torch.autocast("cpu", enabled=False):
                return super().posterior(image)

    names = sorted((folder / "images").glob("*.png"))
    samples = [
        (path.read_bytes(), f"a photo of CUS statue, view {index}") for index, path in enumerate(names)
    ]
    training = Training.model_validate({**TRAINING, "maxSteps": steps})
    loop = Loop(folder / "model", samples, training)
    loop.vae.float()
    trained = [parameter.data.clone() for parameter in loop.parameters]
    for module in (loop.unet, *loop.encoders):
        module.to(torch.bfloat16)
    for parameter, value in zip(loop.parameters, trained, strict=True):
        parameter.data = value.float()
    loop.unet.train()
    seconds, losses = [], []
    for number in range(steps):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(round(loop.step(number), 4))
        seconds.append(time.perf_counter() - started)
    result = {
        "seconds": median(seconds[1:]),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "losses": losses,
    }
    print(json.dumps(result), flush=True)


def child(*words: object) -> str:
    """Run a part of this module in a process of its own, and return its last line."""
    command = [sys.executable, "-m", "benchmarks.full_size", "--child", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1] if done.stdout else ""


def plan_error(planned: int, peak: int) -> float:
    """Return the difference of the plan from the peak, relative to the peak."""
    return abs(planned - peak) / peak


def print_result(**figures: float) -> None:
    """Print the last line, which is machine-readable."""
    print("RESULT " + " ".join(f"{name}={value:.3f}" for name, value in figures.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument(
        "--keep", type=Path, help="write to this folder, and keep it; a model there is used again"
    )
    parser.add_argument("--gpu", action="store_true", help="train on this machine's GPU, without the loop")
    args = parser.parse_args()
    import torch

    from lora_trainer.train.memory.plan import free_memory
    from lora_trainer.train.validation import emulates_bf16
    from lora_trainer.units import GIB

    if not args.gpu and emulates_bf16():
        sys.exit("this CPU has no bf16 instructions (AVX512 or AMX), so that a step would take half an hour")
    available = free_memory(torch.device("cpu"))
    if not args.gpu and available < NEEDED * GIB:
        sys.exit(f"{available / GIB:.1f} GiB of memory are available, and the loop needs {NEEDED}")
    folder = args.keep or Path(tempfile.mkdtemp(prefix="full-size-"))
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:5.0f} s  {text}", flush=True)

    try:
        if not (folder / "model" / "model_index.json").exists():
            child("model", folder)
            say("the model is written")
        for earlier in ("images", "home"):
            shutil.rmtree(folder / earlier, ignore_errors=True)
        write_job(folder, args.steps, args.gpu)
        job_started = time.monotonic()
        trainer = run_trainer(folder)
        job_seconds = time.monotonic() - job_started
        shutil.rmtree(folder / "home", ignore_errors=True)
        say(f"trainer: {trainer}")
        if args.gpu:
            peak = trainer["gpu_peak"]
            print_result(
                gpu_job_seconds=job_seconds,
                gpu_step_ms=1000 * trainer["seconds"],
                gpu_peak_gib=peak / GIB,
                gpu_plan_error=plan_error(trainer["planned"], peak),
            )
            return
        loop = json.loads(child("loop", folder, args.steps))
        say(f"loop: {loop}")
    finally:
        if not args.keep:
            shutil.rmtree(folder)
    print_result(
        full_speedup=loop["seconds"] / trainer["seconds"],
        full_memory_ratio=trainer["peak"] / loop["peak"],
        full_plan_error=plan_error(trainer["planned"], trainer["peak"]),
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        kind, where, *rest = sys.argv[2:]
        if kind == "model":
            write_model(Path(where) / "model")
        else:
            run_loop(Path(where), int(rest[0]))
    else:
        main()
