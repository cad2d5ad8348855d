"""`lora_trainer prefetch` as the chart runs it, against a hub and a store on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from lora_api.manifest import sha256_hex
from lora_api.prefetch import PrefetchConfig
from lora_api.profile import HubModel, StoreModel
from lora_trainer.model_cache import CachedModel, find, origin_of
from lora_trainer.prefetch import main
from tests.conftest import RunningStore
from tests.support.helm import render
from tests.support.hub import COMMIT, FakeHub

MODEL = {"source": "hub", "repo": "studio/sdxl", "revision": COMMIT, "variant": "fp16"}
VAE = {"repo": "studio/vae"}
WEIGHTS = "unet/diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write files with the names of a pipeline's, which are not loaded."""
    folder = tmp_path_factory.mktemp("pipeline")
    names = {
        "model_index.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": os.urandom(300_000),
        "vae/diffusion_pytorch_model.safetensors": os.urandom(1000),
        "text_encoder/model.safetensors": os.urandom(1000),
        "text_encoder_2/model.safetensors": os.urandom(1000),
        **{
            f"{name}/{file}": b"{}"
            for name in ("tokenizer", "tokenizer_2")
            for file in ("vocab.json", "merges.txt")
        },
        "scheduler/scheduler_config.json": b"{}",
        **{
            f"{name}/config.json": name.encode() for name in ("unet", "vae", "text_encoder", "text_encoder_2")
        },
    }
    for name, data in names.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.fixture
def hub(httpserver: HTTPServer, pipeline: Path) -> FakeHub:
    hub = FakeHub(httpserver)
    hub.add("studio/sdxl", pipeline, "fp16")
    hub.add("studio/vae", pipeline / "vae")
    return hub


class Prefetch:
    """The prefetch command with its own cache."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.cache = folder / "cache"
        self._folder = folder
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "home"),
        }

    def start(self, model: dict[str, Any], **fields: Any) -> subprocess.Popen[str]:
        path = self._folder / "prefetch.json"
        path.write_text(json.dumps({"model": model, "name": "house", "cache": str(self.cache), **fields}))
        return subprocess.Popen(
            [sys.executable, "-m", "lora_trainer", "prefetch", "--config", str(path)],
            env=self._environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, model: dict[str, Any], **fields: Any) -> tuple[int, str]:
        process = self.start(model, **fields)
        _, log = process.communicate(timeout=60)
        return process.returncode, log

    def found(self, model: dict[str, Any] = MODEL) -> CachedModel | None:
        """Return the folder that a training would use."""
        return find(origin_of(HubModel.model_validate(model), None), self.cache)

    def partial_files(self) -> list[Path]:
        return [path for path in self.cache.glob("models/*.partial/**/*") if path.is_file()]


@pytest.fixture
def prefetch(tmp_path: Path, hub: FakeHub) -> Prefetch:
    return Prefetch(tmp_path, hub.endpoint)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_the_files_that_training_needs_are_fetched(hub: FakeHub, prefetch: Prefetch) -> None:
    files = dict(hub.repos["studio/sdxl"])
    for unwanted in (
        "sd_xl_base_1.0.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.bin",
        "unet/model.onnx",
        "README.md",
    ):
        hub.repos["studio/sdxl"][unwanted] = b"unwanted"
    model = {**MODEL, "vae": VAE}
    code, log = prefetch.run(model)
    assert code == 0, log
    found = prefetch.found(model)
    assert found is not None
    own_vae = {name for name in files if name.startswith("vae/")}
    assert contents(found.folder) == {name: data for name, data in files.items() if name not in own_vae}
    assert found.vae_folder is not None
    assert contents(found.vae_folder) == hub.repos["studio/vae"]
    assert found.contents.identity == f"hub:studio/sdxl@{COMMIT}#fp16+studio/vae@{COMMIT}"
    listed = {file.key: file.sha256 for file in found.contents.files}
    assert listed[f"model/{WEIGHTS}"] == sha256_hex(files[WEIGHTS])
    assert len(listed) == len(files) - len(own_vae) + len(hub.repos["studio/vae"])
    assert f"house is in {found.entry}" in log

    hub.down = True  # a second run reads the cache and makes no request
    assert prefetch.run(model)[0] == 0


def test_a_killed_run_leaves_no_model_and_the_next_run_resumes(hub: FakeHub, prefetch: Prefetch) -> None:
    hub.hold = threading.Event()
    process = prefetch.start(MODEL)
    assert hub.holding.wait(30)
    process.kill()
    process.communicate()
    assert prefetch.found() is None
    assert prefetch.partial_files()
    hub.hold.set()
    hub.hold, before = None, hub.downloads()
    code, log = prefetch.run(MODEL)
    assert code == 0, log
    assert prefetch.found() is not None
    again = hub.downloads()[len(before) :]
    assert set(before[:-1]).isdisjoint(again)
    assert before[-1] == again[0]
    assert not prefetch.partial_files()


def test_sigterm_ends_a_run_at_once_as_interrupted(hub: FakeHub, prefetch: Prefetch) -> None:
    hub.hold = threading.Event()
    process = prefetch.start(MODEL)
    assert hub.holding.wait(30)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    hub.hold.set()
    assert process.returncode == 75
    assert prefetch.found() is None


def test_only_one_of_two_concurrent_runs_downloads(hub: FakeHub, prefetch: Prefetch) -> None:
    hub.hold = threading.Event()
    first = prefetch.start(MODEL)
    assert hub.holding.wait(30)
    second = prefetch.start(MODEL)
    assert second.stderr is not None
    assert "another process is fetching this model" in second.stderr.readline()
    hub.hold.set()
    logs = [process.communicate(timeout=30)[1] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], logs
    assert len(hub.downloads()) == len(set(hub.downloads())) == len(hub.repos["studio/sdxl"])


def test_bytes_that_do_not_have_the_hubs_hash_are_not_kept(hub: FakeHub, prefetch: Prefetch) -> None:
    for name in ("tokenizer/vocab.json", WEIGHTS):  # by git's hash and by that of LFS
        right = hub.repos["studio/sdxl"][name]
        hub.served = {name: bytes([right[0] ^ 1]) + right[1:]}
        code, log = prefetch.run(MODEL)
        assert code == 69
        assert f"'studio/sdxl' at {COMMIT} sent {name} with a wrong hash" in log
        assert prefetch.found() is None
    hub.served = {}
    assert prefetch.run(MODEL)[0] == 0
    found = prefetch.found()
    assert found is not None
    assert contents(found.folder) == hub.repos["studio/sdxl"]


def test_a_damaged_model_is_fetched_again(hub: FakeHub, prefetch: Prefetch) -> None:
    assert prefetch.run(MODEL)[0] == 0
    found = prefetch.found()
    assert found is not None
    path, right = found.folder / WEIGHTS, hub.repos["studio/sdxl"][WEIGHTS]

    path.write_bytes(right[:-1])
    assert prefetch.found() is None  # a training compares the size ...
    path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    assert prefetch.found() is not None  # ... but not every byte
    hub.down = True
    code, log = prefetch.run(MODEL)
    assert code == 69
    assert f"{WEIGHTS} does not match its sha256" in log
    assert path.exists()  # it stays until another one is complete
    hub.down = False
    assert prefetch.run(MODEL)[0] == 0
    assert path.read_bytes() == right
    assert [each.name for each in prefetch.cache.glob("models/*") if each.is_dir()] == [found.entry.name]


def refuse_nothing(hub: FakeHub) -> None:
    pass


def gate(hub: FakeHub) -> None:
    hub.gated.add("studio/sdxl")


def close(hub: FakeHub) -> None:
    hub.down = True


@pytest.mark.parametrize(
    ("prepare", "change", "code", "words"),
    [
        (refuse_nothing, {"repo": "studio/none"}, 64, "does not exist or is not public"),
        (refuse_nothing, {"revision": "f" * 40}, 64, f"at {'f' * 40} does not exist"),
        (
            refuse_nothing,
            {"variant": ""},
            64,
            "has no weights unet/*.safetensors without a variant: correct",
        ),
        (refuse_nothing, {"variant": "bf16"}, 64, "of the variant 'bf16'"),
        (refuse_nothing, {"repo": "studio/vae", "variant": ""}, 64, "is not a diffusers pipeline"),
        (gate, {}, 64, "requires accepting a licence"),
        (close, {}, 69, "cannot be fetched: "),
        (refuse_nothing, {"repo": "no name"}, 64, "does not exist"),
        (refuse_nothing, {"color": "red"}, 64, "color"),
    ],
)
def test_each_failure_has_an_exit_code_and_names_the_remedy(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    prepare: Any,
    change: dict[str, Any],
    code: int,
    words: str,
) -> None:
    """It runs in this process, which is faster."""
    prepare(hub)
    hub.use(monkeypatch)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    path = tmp_path / "prefetch.json"
    path.write_text(json.dumps({"model": {**MODEL, **change}, "name": "house", "cache": str(tmp_path)}))
    assert main(path) == code
    assert words in caplog.messages[-1]
    assert [record.levelname for record in caplog.records][-1] == "ERROR"


def test_an_unreachable_hub_is_retried_by_the_job(tmp_path: Path) -> None:
    code, log = Prefetch(tmp_path, "http://127.0.0.1:9").run(MODEL)
    assert code == 69
    assert "'studio/sdxl'" in log
    assert "Traceback" not in log


@pytest.fixture
def uploaded(running_store: RunningStore, pipeline: Path, uid: str) -> StoreModel:
    """The pipeline in the store's input bucket."""
    prefix = f"models/{uid}/"
    for name, data in {**contents(pipeline), "unet/pytorch_model.bin": b"a pickle"}.items():
        running_store.store.input.put(prefix + name, data)
    return StoreModel(source="store", key=prefix)


def test_a_model_of_the_store_follows_what_is_uploaded(
    tmp_path: Path, running_store: RunningStore, uploaded: StoreModel, pipeline: Path
) -> None:
    prefetch, bucket = Prefetch(tmp_path, "http://127.0.0.1:9"), running_store.store.input
    origin = origin_of(uploaded, bucket)
    store = {"endpoint": running_store.access.endpoint, "secure": False}
    fields = {"store": store, "credentialsDir": running_store.access.credentials_dir}
    code, log = prefetch.run(uploaded.to_wire(), **fields)
    assert code == 0, log
    first = find(origin, prefetch.cache)
    assert first is not None
    assert contents(first.folder) == contents(pipeline)

    bucket.put(uploaded.key + "unet/config.json", b"another")
    code, log = prefetch.run(uploaded.to_wire(), **fields)
    assert code == 0
    assert "out of date" in log
    second = find(origin, prefetch.cache)
    assert second is not None
    assert (second.folder / "unet/config.json").read_bytes() == b"another"
    assert second.contents.identity != first.contents.identity

    bucket.remove(uploaded.key + "model_index.json")
    code, log = prefetch.run(uploaded.to_wire(), **fields)
    assert code == 64
    assert "is not a diffusers pipeline (no model_index.json)" in log
    assert find(origin, prefetch.cache) is not None  # existing models are kept


def test_the_chart_mounts_what_its_configuration_reads() -> None:
    cached = {"modelCache": {"persistentVolumeClaim": "lora-models"}}
    house = {"house": {"source": "store", "key": "models/house/"}}
    values = {
        "modelCache": {"enabled": True, "namespaces": ["studio"]},
        "profiles": {"default": {**cached, "models": house, "store": {"caConfigMap": "store-ca"}}},
    }
    found = {(each["kind"], each["metadata"]["name"]): each for each in render(values)}
    jobs = [name for kind, name in found if kind == "Job"]
    assert len(jobs) == 2
    for name in jobs:
        config = PrefetchConfig.model_validate_json(found["ConfigMap", name]["data"]["prefetch.json"])
        (container,) = found["Job", name]["spec"]["template"]["spec"]["containers"]
        mounted = {Path(mount["mountPath"]) for mount in container["volumeMounts"]}
        assert Path(config.cache) in mounted
        if config.model.source == "store":
            assert {Path(config.credentials_dir), Path(config.ca_file).parent} <= mounted
        assert container["command"][3] == "prefetch"
        assert Path(container["command"][5]).name == "prefetch.json"


def test_the_stores_failures_have_their_codes(tmp_path: Path, running_store: RunningStore) -> None:
    prefetch = Prefetch(tmp_path, "http://127.0.0.1:9")
    model = {"source": "store", "key": "models/none/"}
    assert prefetch.run(model)[0] == 64
    store = {"endpoint": running_store.access.endpoint, "secure": False}
    fields = {"store": store, "credentialsDir": running_store.access.credentials_dir}
    (Path(running_store.access.credentials_dir) / "secretKey").write_text("wrong")
    code, log = prefetch.run(model, **fields)
    assert code == 77
    assert "refused the credentials for bucket" in log
