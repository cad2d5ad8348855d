"""A training whose base model was prefetched into a read-only cache."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pytest_httpserver import HTTPServer
from safetensors.torch import load

from lora_api.exits import ExitCode
from lora_api.profile import HubModel, HubVae
from lora_api.reasons import Reason
from lora_api.stages import Outcome
from lora_trainer.errors import BadSetupError
from lora_trainer.model_cache import find, origin_of
from lora_trainer.prefetch import main
from tests.support.hub import COMMIT, FakeHub

MODEL = HubModel(
    source="hub", repo="studio/tiny", revision=COMMIT, variant="fp16", vae=HubVae(repo="studio/vae")
)


@pytest.fixture
def cache(
    httpserver: HTTPServer, tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Fill the cache from a local hub."""
    hub = FakeHub(httpserver)
    hub.add("studio/tiny", tiny_sdxl, "fp16")
    hub.add("studio/vae", tiny_sdxl / "vae")
    folder = tmp_path / "claim"
    path = tmp_path / "prefetch.json"
    path.write_text(json.dumps({"name": "tiny", "model": MODEL.to_wire(), "cache": str(folder)}))
    with monkeypatch.context() as here:
        hub.use(here)
        here.setattr(signal, "signal", lambda *_: None)
        assert main(path) == ExitCode.OK
    return folder


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")}


def test_a_training_reads_the_cache_asks_no_hub_and_writes_nothing_there(make_job, cache):
    plain = make_job(maxSteps=2)
    plain.run()
    job = make_job(maxSteps=2).with_config(base_model=MODEL, cache_dir=str(cache), prefetched=True)
    before = state(cache)
    assert job.run().outcome is Outcome.TRAINED
    assert state(cache) == before
    one, other = (load(each.attempt_file("adapter.safetensors")) for each in (job, plain))
    assert one.keys() == other.keys()  # the files themselves differ by the base model in their metadata
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_an_incomplete_model_is_a_setup_error_that_names_the_job(make_job, cache):
    found = find(origin_of(MODEL, None), cache)
    assert found is not None
    job = make_job().with_config(base_model=MODEL, cache_dir=str(cache), prefetched=True)
    another = job.with_config(base_model=MODEL.model_copy(update={"revision": "e" * 40}))
    weights = next(found.folder.glob("unet/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    for case in (another, job):
        with pytest.raises(BadSetupError, match="prefetch Job has failed or is still running") as error:
            case.run()
        assert error.value.reason is Reason.MODEL_UNAVAILABLE
        assert "-n studio -l app.kubernetes.io/component=prefetch" in str(error.value)
