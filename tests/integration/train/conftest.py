"""Fixtures for training jobs: a tiny SDXL model, and five images in a real store."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora_api.job import Recipe, parse_spec
from lora_api.manifest import Manifest, sha256_hex
from lora_api.profile import StoreModel
from lora_api.stages import AppliedRecipe, StageResult, TrainConfig
from lora_trainer.progress import Reporter
from lora_trainer.store import Store
from lora_trainer.train.model.tiny import write_tiny_sdxl
from lora_trainer.train.stage import work
from tests.conftest import RunningStore, make_spec

THIRD_PARTY_WARNINGS = [
    # diffusers hands tensors to numpy in a way that numpy 2 will drop.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:.*torch.jit.script.* is deprecated:DeprecationWarning",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for warning in THIRD_PARTY_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-sdxl")
    write_tiny_sdxl(folder)
    return folder


@pytest.fixture(scope="session")
def shallow_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a third of the layers, for tests that train hundreds of times."""
    folder = tmp_path_factory.mktemp("shallow-sdxl")
    write_tiny_sdxl(folder, depth=1)
    return folder


@pytest.fixture(scope="session")
def tiny_velocity(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, taken to predict the velocity."""
    folder = tmp_path_factory.mktemp("tiny-velocity")
    shutil.copytree(tiny_sdxl, folder, dirs_exist_ok=True)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    return folder


@pytest.fixture(scope="session")
def clean_images(photographs: list[Path]) -> list[bytes]:
    """Return the photographs as small images, as the annotation stage publishes them."""
    found = []
    for path in photographs:
        image = Image.open(path).convert("RGB")
        image.thumbnail((160, 160))
        out = io.BytesIO()
        image.save(out, "png")
        found.append(out.getvalue())
    return found


@dataclass
class Job:
    """A training job in the store, and ways to run it."""

    config: TrainConfig
    store: Store
    folder: Path
    """The job's folder on this machine."""

    def run(self) -> StageResult:
        """Run the stage in this process."""
        reporter = Reporter("127.0.0.1", 0)
        try:
            return work(self.config, reporter)
        finally:
            reporter.close()

    def config_file(self) -> Path:
        path = self.folder / "stage.json"
        path.write_text(json.dumps(self.config.to_wire()))
        return path

    def with_config(self, **changes: Any) -> Job:
        return Job(self.config.model_copy(update=changes), self.store, self.folder)

    def attempt_file(self, name: str) -> bytes:
        # An adapter of the highest rank is larger than what the product reads into memory.
        return self.store.output.get(self.config.keys.attempt(self.config.attempt) + name, 1 << 30)

    def manifest(self) -> Manifest:
        return Manifest.model_validate_json(self.store.output.get(self.config.keys.manifest(1)))

    def termination_message(self) -> str:
        return Path(self.config.termination_log).read_text()

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.attempt_file("metrics.jsonl").splitlines()]


JobMaker = Callable[..., Job]


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of base models and memory traces for all tests, as a volume is for all jobs of a node."""
    return tmp_path_factory.mktemp("model-cache")


@pytest.fixture
def make_job(
    running_store: RunningStore, tiny_sdxl: Path, clean_images: list[bytes], tmp_path: Path, model_cache: Path
) -> JobMaker:
    """Return a function that creates a job in the store. `training` overrides small, fast settings."""
    counter = itertools.count()

    def make(
        lines: list[dict[str, Any]] | None = None,
        model: Path = tiny_sdxl,
        output: dict[str, Any] | None = None,
        concept: dict[str, Any] | None = None,
        **training: Any,
    ) -> Job:
        store = running_store.store
        model_key = f"models/{model.name}/"
        for path in model.rglob("*"):
            if path.is_file() and not store.input.exists(f"{model_key}{path.relative_to(model)}"):
                store.input.put_file(f"{model_key}{path.relative_to(model)}", path)
        rate = {} if "Prodigy" in training.get("optimizer", "") else {"learningRate": "1e-3"}
        settings = {
            "resolution": 64,
            "rank": 4,
            "maxSteps": 4,
            **rate,
            "optimizer": "AdamW",
            "mixedPrecision": "fp32",
            "preview": {"numInferenceSteps": 2},
            **training,
        }
        replaced = {"concept": concept} if concept else {}
        spec = parse_spec(
            make_spec(training=settings, output=output or {}, resources={"train": {"gpus": 0}}, **replaced)
        )
        recipe = None
        if spec.training.recipe is not Recipe.NONE:  # as the operator does
            completed = spec.completed(len(clean_images))
            recipe = AppliedRecipe(
                kind=completed.kind, images=len(clean_images), fields=list(completed.chosen)
            )
            spec = spec.with_recipe(len(clean_images))
        folder = tmp_path / f"job-{next(counter)}"
        folder.mkdir()
        config = TrainConfig(
            namespace="studio",
            name="statue",
            uid=f"{tmp_path.name}-{folder.name}",
            spec=spec,
            recipe=recipe,
            base_model=StoreModel(source="store", key=model_key),
            store=running_store.access,
            work_dir=str(folder / "work"),
            termination_log=str(folder / "termination-log"),
            progress_host="127.0.0.1",
            progress_port=0,
            attempt=1,
            captions_sha256="",
            input_hash=f"sha256:{sha256_hex(str(folder).encode())}",
            cache_dir=str(model_cache),
        )
        for index, data in enumerate(clean_images):
            store.output.put(config.keys.image(index), data)
        lines = lines or [
            {"file_name": f"{index:03d}.png", "text": f"a photo of CUS statue, view {index}"}
            for index in range(len(clean_images))
        ]
        captions = "".join(json.dumps(line) + "\n" for line in lines).encode()
        store.output.put(config.keys.captions, captions)
        config = config.model_copy(update={"captions_sha256": sha256_hex(captions)})
        return Job(config, store, folder)

    return make


AdapterMaker = Callable[..., bytes]


@pytest.fixture(scope="session")
def adapters() -> dict[str, bytes]:
    return {}


@pytest.fixture
def uninterrupted(make_job: JobMaker, adapters: dict[str, bytes]) -> AdapterMaker:
    """Return a function for the adapter of an uninterrupted training, which is trained once for all tests."""

    def make(**training: Any) -> bytes:
        name = json.dumps(training, sort_keys=True)
        if name not in adapters:
            job = make_job(**training)
            job.run()
            adapters[name] = job.attempt_file("adapter.safetensors")
        return adapters[name]

    return make
