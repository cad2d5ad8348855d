"""Training stages on a simulated CUDA device, to publication; see tests/cuda.

With LORA_TEST_GPU=1 they run on this machine's GPU (`make test-gpu`). There, kernels with atomic additions are not
bit-exact, and what needs control over the device is not tested.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from lora_api.exits import ExitCode
from lora_api.job import parse_spec
from lora_api.reasons import Reason
from tests.cuda.build import REAL_GPU, build, missing_tool
from tests.integration.train.conftest import Job, JobMaker

pytestmark = pytest.mark.skipif(missing_tool() is not None, reason=str(missing_tool()))
simulated_only = pytest.mark.skipif(REAL_GPU, reason="needs the simulated device")
ROOT = Path(__file__).parents[3]
GPU: dict[str, Any] = {"mixedPrecision": "fp16", "maxSteps": 3}
ONLY_ON_GPU: dict[str, Any] = {"adapter": {}, "compile": "Auto", "mixedPrecision": "fp16"}
KINDS: dict[str, dict[str, Any]] = {
    "LoRA in fp16": {},
    "LoRA in bf16": {"mixedPrecision": "bf16"},
    "LoRA in fp32": {"mixedPrecision": "fp32"},
    "checkpointing": {"gradientCheckpointing": "Always"},
    "all layers": {"adapter": {"targets": "Full"}},
    "rank dropout": {"adapter": {"rankDropout": "0.1"}},
    "DoRA": {"adapter": {"useDoRA": True}},
    "LoKr": {"adapter": {"type": "LoKr"}},
    "LoHa": {"adapter": {"type": "LoHa"}},
    "NF4": {"quantizeBase": "NF4"},
    "Int8": {"quantizeBase": "Int8", "gradientCheckpointing": "Always"},
    "extract": {"method": "DreamBoothExtract", "learningRate": "1e-4"},
    "extract in bf16": {
        "method": "DreamBoothExtract",
        "mixedPrecision": "bf16",
        "learningRate": "1e-4",
        "extraction": {"convolutions": True, "factorSteps": 1},
    },
    "extract, text encoders": {
        "method": "DreamBoothExtract",
        "learningRate": "1e-4",
        "textEncoder": {"train": True},
        "extraction": {"factorSteps": 1},
    },
    "text encoders": {"textEncoder": {"train": True}},
    "token embeddings": {"tokenEmbeddings": {"train": True}},
    "AdamW8bit": {"optimizer": "AdamW8bit", "rank": 80},
    "Prodigy": {"optimizer": "Prodigy"},
    "ProdigyScheduleFree": {"optimizer": "ProdigyScheduleFree"},
    "Adafactor": {"optimizer": "Adafactor"},
    "CAME": {"optimizer": "CAME"},
    "validation": {"emaDecay": "0.9", "validation": {"everySteps": 2, "samples": 2, "heldOutImages": 1}},
    "prior preservation": {"priorPreservation": {"enabled": True, "numClassImages": 2}},
    "accumulation": {"batchSize": 2, "gradientAccumulationSteps": 2, "crop": "Buckets"},
}
OWN_LOSS = {
    "extract",
    "extract in bf16",
    "prior preservation",
    "accumulation",
    "rank dropout",
    "validation",
    "token embeddings",
}
"""Kinds whose first loss is of other samples or weights than that of a plain step on a CPU."""
QUANTIZED = {"NF4", "Int8"}


class Device:
    """A process with a simulated device, which runs one stage after another."""

    def __enter__(self) -> Device:
        if not REAL_GPU:
            build("simulated")
        self._start()
        return self

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `__exit__`
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "tests.cuda.run_jobs"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)
        self._errors.close()

    def run(self, job: Job, gpu: str = "", fault: str = "") -> dict[str, Any]:
        """Run a stage; see `tests.cuda.run_jobs.Request`."""
        assert self._process.stdin
        assert self._process.stdout
        request = {"config": str(job.config_file()), "gpu": gpu, "fault": fault}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith('{"code"'):
                outcome: dict[str, Any] = json.loads(line)
                return outcome
        self._errors.seek(0)
        words = self._errors.read()[-3000:]
        self.__exit__()
        self._start()  # for the tests that follow
        raise AssertionError(f"the simulated device has crashed: {words}")


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with Device() as found:
        yield found


@pytest.fixture(name="make_job")
def make_shallow_job(make_job: JobMaker, shallow_sdxl: Path) -> JobMaker:
    return partial(make_job, model=shallow_sdxl)


def gpu_job(make_job: JobMaker, **training: Any) -> Job:
    """Make a job that trains on a GPU; LoKr and LoHa have kohya's format alone."""
    training = {**GPU, **training}
    # Not accepted of a job on a CPU, which `make_job` makes.
    of_gpu = {name: training.pop(name, default) for name, default in ONLY_ON_GPU.items()}
    adapter = of_gpu["adapter"]
    job = make_job(**training)
    wire = job.config.spec.to_wire()
    wire["training"] |= of_gpu
    wire["output"] = {"formats": ["kohya"] if "type" in adapter else ["diffusers", "kohya"]}
    wire["resources"] = {"train": {"gpus": 1}}
    return job.with_config(spec=parse_spec(wire))


def losses(job: Job) -> list[float]:
    return [record["loss"] for record in job.records()]


def assert_trained_alike(job: Job, other: Job) -> None:
    """Compare losses and adapters bit for bit on the simulated device, and losses closely on a GPU.

    On a GPU, gradients of almost zero differ in sign, and Adam makes full steps of them.
    """
    if REAL_GPU:
        assert losses(job) == pytest.approx(losses(other), rel=1e-3)
        return
    assert losses(job) == losses(other)
    assert job.attempt_file("adapter.safetensors") == other.attempt_file("adapter.safetensors")


@pytest.fixture(scope="module")
def cpu_losses() -> list[float]:
    return []


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_trains_to_publication_with_the_loss_of_a_cpu(
    make_job: JobMaker, device: Device, cpu_losses: list[float], name: str
) -> None:
    if not cpu_losses:  # in float32, once for all kinds
        plain = make_job(maxSteps=1)
        plain.run()
        cpu_losses += losses(plain)
    job = gpu_job(make_job, **KINDS[name])
    outcome = device.run(job)
    assert outcome["code"] == 0, outcome["result"]
    if name not in OWN_LOSS:
        assert losses(job)[0] == pytest.approx(cpu_losses[0], rel=0.1 if name in QUANTIZED else 0.02)
    # Images are encoded in float32, whatever the job's number format.
    assert outcome["encoders"] in ([], ["float32"])
    manifest = job.manifest()
    assert manifest.memory is not None
    if not REAL_GPU:
        assert manifest.memory.peak_bytes == 3 * 2**30
        assert "peak 3.0 GiB in PyTorch, planned" in job.attempt_file("report.html").decode()
    form = "adapter-kohya" if job.config.spec.output.formats == ["kohya"] else "adapter"
    assert all(tensor.isfinite().all() for tensor in load(job.attempt_file(f"{form}.safetensors")).values())


def test_graphed_steps_give_the_bytes_of_eager_ones(make_job: JobMaker, device: Device) -> None:
    settings: dict[str, Any] = {
        "maxSteps": 6,
        "gradientAccumulationSteps": 2,
        "gradientCheckpointing": "Always",
        "preview": {"everySteps": 4, "numInferenceSteps": 2},
    }
    eager, graphed, failing = (
        gpu_job(make_job, **settings, compile=c) for c in ("Never", "Always", "Always")
    )
    outcomes = [device.run(eager), device.run(graphed), device.run(failing, fault="capture")]
    assert [outcome["code"] for outcome in outcomes] == [0, 0, 0], [each["result"] for each in outcomes]
    # The first step runs eagerly. The previews of step 4 free the memory of the graph, which is captured again.
    assert [outcome["captures"] for outcome in outcomes] == [0, 2, 0]
    assert [outcome["replays"] for outcome in outcomes] == [0, 10, 0]
    refusals = [text for text in outcomes[2]["log"] if "the capture failed" in text]
    assert len(refusals) == 1, "a failed capture is tried once"
    assert "run without a CUDA graph" in refusals[0]
    # Neither the graphs of a job nor a failed capture keep memory.
    assert [(outcome["allocating"], outcome["reserved_pools"]) for outcome in outcomes] == [(0, 0)] * 3
    for job in (graphed, failing):
        assert_trained_alike(job, eager)


@pytest.mark.parametrize(
    "training",
    [{"method": "DreamBoothExtract", "learningRate": "1e-4"}, {"adapter": {"useDoRA": True}}],
    ids=["extract", "DoRA"],
)
def test_every_kind_of_weight_can_be_graphed(
    make_job: JobMaker, device: Device, training: dict[str, Any]
) -> None:
    eager, graphed = (
        gpu_job(make_job, maxSteps=5, **training, compile=choice) for choice in ("Never", "Always")
    )
    outcomes = device.run(eager), device.run(graphed)
    assert [outcome["code"] for outcome in outcomes] == [0, 0], [each["result"] for each in outcomes]
    assert (outcomes[1]["captures"], outcomes[1]["replays"]) == (1, 3)
    assert_trained_alike(graphed, eager)


@simulated_only
def test_auto_captures_where_the_steps_repay_it(make_job: JobMaker, device: Device) -> None:
    # Two passes run eagerly, and six replays repay a capture.
    short, long = (device.run(gpu_job(make_job, maxSteps=steps, resolution=32)) for steps in (7, 8))
    assert (short["captures"], short["replays"]) == (0, 0)
    assert (long["captures"], long["replays"]) == (1, 6)
    dropout = device.run(gpu_job(make_job, adapter={"rankDropout": "0.1"}, maxSteps=1))
    assert "passes run without CUDA graphs: rank dropout draws its masks on the CPU" in dropout["log"]
    slow = device.run(gpu_job(make_job, maxSteps=8, resolution=32), fault="slow")
    assert slow["captures"] == 0
    assert any("the GPU limits the speed" in text for text in slow["log"])


@simulated_only
def test_a_gpu_without_kernels_is_refused_by_its_name(make_job: JobMaker, device: Device) -> None:
    old = device.run(gpu_job(make_job), gpu="V100")
    assert old["code"] == ExitCode.BAD_SETUP
    assert "the GPU Tesla V100 (compute capability 7.0) is not supported" in old["result"]["message"]
    bf16 = device.run(gpu_job(make_job, mixedPrecision="bf16"), gpu="T4")
    assert bf16["code"] == ExitCode.BAD_CONFIGURATION
    assert (
        "training.mixedPrecision: the GPU Tesla T4 (compute capability 7.5) has no bf16"
        in bf16["result"]["message"]
    )
    assert device.run(gpu_job(make_job), gpu="T4")["code"] == 0


def test_a_trained_adapter_is_not_lost_for_a_preview(make_job: JobMaker, device: Device) -> None:
    plain = gpu_job(make_job)
    job = gpu_job(make_job, preview={"everySteps": 1, "numInferenceSteps": 2})
    outcomes = device.run(plain), device.run(job, fault="preview")
    assert outcomes[1]["code"] == 0, outcomes[1]["result"]
    missing = [text for text in outcomes[1]["log"] if "previews of step" in text and "are missing" in text]
    assert len(missing) == 3
    assert job.manifest().previews == []
    assert_trained_alike(job, plain)


@pytest.mark.parametrize("fault", ["step", "cublas"])
def test_a_full_memory_is_named_and_the_next_attempt_checkpoints(
    make_job: JobMaker, device: Device, fault: str
) -> None:
    job = gpu_job(make_job)
    first = device.run(job, fault=fault)
    assert first["result"]["reason"] == Reason.OUT_OF_MEMORY
    assert first["code"] not in (0, ExitCode.BAD_CONFIGURATION)
    assert "the next attempt uses gradient checkpointing" in first["result"]["message"]
    second = device.run(job, fault=fault)
    assert second["code"] == 0, second["result"]
    assert any(
        "gradient checkpointing is on: an earlier attempt ran out of memory" in t for t in second["log"]
    )
    never = device.run(gpu_job(make_job, gradientCheckpointing="Never"), fault=fault)
    assert never["code"] == ExitCode.BAD_CONFIGURATION, (
        "a retry with the same plan would fail in the same way"
    )
    assert "training.gradientCheckpointing to Auto" in never["result"]["message"]


def test_a_stopped_job_resumes_with_the_same_losses(make_job: JobMaker, device: Device) -> None:
    """In fp16, with 8-bit states and CUDA graphs, which are captured again after the restart."""
    settings: dict[str, Any] = {"maxSteps": 8, "optimizer": "AdamW8bit", "rank": 80, "compile": "Always"}
    whole, job = gpu_job(make_job, **settings), gpu_job(make_job, **settings)
    assert device.run(whole)["code"] == 0
    stopped = device.run(job, fault="stop")
    assert stopped["code"] == ExitCode.INTERRUPTED
    resumed = device.run(job)
    assert resumed["code"] == 0, resumed["result"]
    assert resumed["result"]["training"]["resumedFromStep"] == 2
    assert_trained_alike(job, whole)


@simulated_only
def test_reported_seconds_end_when_the_device_has_finished(make_job: JobMaker, device: Device) -> None:
    job = gpu_job(make_job)
    assert device.run(job, fault="slow")["code"] == 0
    assert all(record["seconds"] >= 0.2 for record in job.records())
