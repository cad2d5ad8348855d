"""Every value of every setting trains, all pairs of them together, and each has an effect.

`make test` runs a part of it, always the same; `make matrix` runs all (MATRIX=full).
"""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from lora_api.job import InvalidResourceError, parse_spec
from lora_api.profile import ScoringModels, StoreModel
from lora_api.reasons import Reason
from lora_api.stages import TrainConfig
from lora_trainer.errors import BadConfigurationError
from tests.integration.train.conftest import Job, JobMaker
from tests.support import matrix
from tests.support.bad_specs import CONFLICTS
from tests.support.builders import wire_spec
from tests.unit.train.test_scoring import write_scoring_models

FULL = os.environ.get("MATRIX") == "full"
SOME = 20
"""Number of rows that train in `make test`."""
ROWS = matrix.all_rows(matrix.CPU) if FULL else matrix.some_rows(matrix.CPU, SOME)
STAGE: dict[str, Any] = {}
"""A stage's configuration, made once."""
OUTCOMES: dict[str, dict[str, Any]] = {}
"""Outcomes of runs by their settings, because many fields are compared with the same run."""
IMAGES, CROP = 5, [0.1, 0.0, 0.7, 0.8]
"""Number of images of a job, and the part of each to train on."""
RecordProperty = Any
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(name="make_job")
def make_shallow_job(make_job: JobMaker, shallow_sdxl: Path) -> JobMaker:
    return partial(make_job, model=shallow_sdxl)


def make(make_job: JobMaker, row: matrix.Row, tmp_path: Path) -> Job:
    parts = matrix.settings(row, matrix.CPU.base)
    # A crop as the annotation stage finds it.
    lines = [
        {"file_name": f"{index:03d}.png", "text": f"a photo of CUS statue, view {index}", "crop": CROP}
        for index in range(IMAGES)
    ]
    job = make_job(lines, output=parts.get("output"), **parts["training"])
    if not matrix.is_scored(row):
        return job
    models = {}
    folders = write_scoring_models(tmp_path / f"scoring-{job.folder.name}")
    for name, folder in zip(("likeness", "fidelity"), folders, strict=True):
        models[name] = StoreModel(source="store", key=f"scoring/{job.config.uid}/{name}/")
        for path in folder.iterdir():
            job.store.input.put_file(f"{models[name].key}{path.name}", path)
    return job.with_config(scoring=ScoringModels.model_validate(models))


@pytest.mark.parametrize("row", ROWS, ids=[f"run {number}" for number in range(len(ROWS))])
def test_settings_train_together(
    make_job: JobMaker, tmp_path: Path, record_property: RecordProperty, row: matrix.Row
) -> None:
    record_property("run", 1)
    job = make(make_job, row, tmp_path)
    assert job.run().reason == Reason.TRAINED
    assert [record["not_finite"] for record in job.records()] == [None] * len(job.records())
    formats = job.config.spec.output.formats
    name = "adapter.safetensors" if "diffusers" in formats else "adapter-kohya.safetensors"
    tensors = load(job.attempt_file(name))
    assert tensors
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_the_rows_have_every_value_and_all_of_them_every_pair() -> None:
    assert matrix.missing_values(ROWS, matrix.parameters(matrix.CPU)) == []
    assert matrix.missing_pairs(matrix.all_rows(matrix.CPU), matrix.CPU) == []
    for row in ROWS:  # `matrix` evaluates the rules itself, which is faster
        parse_spec({**wire_spec(), **matrix.settings(row, matrix.CPU.base)})


@pytest.mark.parametrize("kind", ["LoKr", "LoHa"])
def test_lokr_and_loha_train_from_end_to_end(make_job: JobMaker, kind: str) -> None:
    job = make_job(output={"formats": ["kohya"]}, adapter={"type": kind}, maxSteps=3)
    assert job.run().reason == Reason.TRAINED
    tensors = load(job.attempt_file("adapter-kohya.safetensors"))
    layers: dict[str, list[bool]] = {}
    for name, tensor in tensors.items():
        layers.setdefault(name.partition(".")[0], []).append(bool(tensor.any()))
    assert any(all(parts) for parts in layers.values())  # one factor starts at zero


ODD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "one step": ({"maxSteps": 1, "lrScheduler": "cosine", "emaDecay": "0.999999"}, []),
    "warm-up until the last step": ({"maxSteps": 2, "lrWarmupSteps": 1, "lrScheduler": "polynomial"}, []),
    "a rank above every layer's": ({"rank": 1024, "alpha": 1, "adapter": {"targets": "Full"}}, []),
    "ranks of one": ({"rank": 1, "alpha": 4096, "adapter": {"useDoRA": True, "targets": "Full"}}, []),
    "more in a batch than images": ({"batchSize": 8, "gradientAccumulationSteps": 3, "maxSteps": 1}, []),
    "sides that are no multiple of 64": (
        {"resolution": 72, "crop": "Buckets", "augmentation": {"extraResolutions": [32, 40]}, "batchSize": 2},
        [],
    ),
    "a single timestep": ({"timesteps": {"min": "0.5", "max": "0.5005"}, "noiseOffset": "1"}, []),
    "one image to train on": ({"validation": {"everySteps": 1, "heldOutImages": 4, "samples": 1}}, []),
    "no block but one": (
        {"adapter": {"blocks": [{"block": name, "rank": 0} for name in ("down_blocks.1", "up_blocks.0")]}},
        [],
    ),
    "empty captions": ({"captionDropout": "1"}, [""] * 5),
    "captions of other scripts": (
        {"textEncoder": {"train": True}},
        ["CUS 雕像", "\u0301", "🗿" * 200, "a", "ß"],
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_unusual_settings_train(make_job: JobMaker, name: str) -> None:
    training, captions = ODD[name]
    lines = [{"file_name": f"{index:03d}.png", "text": text} for index, text in enumerate(captions)]
    job = make_job(lines, **{"maxSteps": 2, "preview": {"numInferenceSteps": 1}, **training})
    assert job.run().reason == Reason.TRAINED
    assert [record["not_finite"] for record in job.records()] == [None] * job.config.spec.training.max_steps
    tensors = load(job.attempt_file("adapter.safetensors"))
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize(
    "training",
    [
        {"learningRate": "1e-60"},
        {"snrGamma": "1e-60"},
        {"learningRate": "1e-60", "adapter": {"useDoRA": True}},
    ],
    ids=str,
)
def test_a_training_that_changes_nothing_is_not_published(
    make_job: JobMaker, training: dict[str, Any]
) -> None:
    job = make_job(**{"maxSteps": 2, **training})
    with pytest.raises(BadConfigurationError, match="training has changed nothing in 2 steps"):
        job.run()
    assert not job.store.output.exists(job.config.keys.manifest(1))


def test_every_setting_has_a_value_to_try() -> None:
    tried = {*matrix.OTHERS, *matrix.ELSEWHERE, *matrix.all_parameters()}
    fields = set(matrix.fields())
    assert sorted(fields - tried) == [], "add a value of each to OTHERS in tests/support/matrix.py"
    assert sorted(tried - fields) == [], (
        "remove these from tests/support/matrix.py: the job has no such fields"
    )


@pytest.mark.parametrize(("change", "message"), CONFLICTS, ids=[message for _, message in CONFLICTS])
def test_the_stage_refuses_what_the_command_refuses(
    make_job: JobMaker, record_property: RecordProperty, change: dict[str, Any], message: str
) -> None:
    record_property("refused", 1)
    if not STAGE:
        STAGE.update(make_job().config.to_wire())
    spec = wire_spec(**change)
    with pytest.raises(InvalidResourceError) as refused:
        parse_spec(spec)
    assert message in str(refused.value)
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainConfig.model_validate({**STAGE, "spec": spec})


def outcome(make_job: JobMaker, tmp_path: Path, row: matrix.Row) -> dict[str, Any]:
    """Return the results of a run, without times and without names that differ between runs."""
    if not matrix.is_valid(row, matrix.CPU):
        return {"refused": True}
    known = json.dumps(row, sort_keys=True)
    if known in OUTCOMES:
        return OUTCOMES[known]
    job = make(make_job, row, tmp_path)
    job.run()
    keys = job.config.keys
    stored = sorted(item.key for item in job.store.output.list(keys.root, 1000))
    files: dict[str, Any] = {}
    for key in stored:
        name = key.removeprefix(keys.root)
        if key.endswith(".png") and "/images/" not in key:
            files[name] = job.store.output.get(key)
        if key.endswith(".safetensors"):
            # Not the metadata, which names the job. The bytes of a bf16 tensor have no numpy type.
            tensors = load(job.store.output.get(key))
            files[name] = {n: (str(t.dtype), t.float().numpy().tobytes()) for n, t in tensors.items()}
    records = [{k: v for k, v in record.items() if k != "seconds"} for record in job.records()]
    found = {"files": files, "records": records, "stored": [key.removeprefix(keys.root) for key in stored]}
    return OUTCOMES.setdefault(known, found)


NUMBERS = [path for path in matrix.fields() if path in matrix.OTHERS]
SWITCHES = [path for path in matrix.all_parameters() if path != "training.gradientCheckpointing"]
"""Gradient checkpointing changes the memory alone: test_on_cuda and test_plan."""


def test_the_same_settings_leave_the_same(make_job: JobMaker, tmp_path: Path) -> None:
    """Otherwise the tests below would pass for a setting without effect."""
    first = outcome(make_job, tmp_path, {})
    OUTCOMES.clear()
    assert outcome(make_job, tmp_path, {}) == first


@pytest.mark.skipif(not FULL, reason="minutes: make matrix")
@pytest.mark.parametrize("path", NUMBERS)
def test_another_number_changes_the_run(
    make_job: JobMaker, tmp_path: Path, record_property: RecordProperty, path: str
) -> None:
    record_property("field", path)
    value, companions = matrix.OTHERS[path]
    one, other = ({**companions}, {**companions, path: value})
    assert outcome(make_job, tmp_path, one) != outcome(make_job, tmp_path, other)


@pytest.mark.skipif(not FULL, reason="minutes: make matrix")
@pytest.mark.parametrize("path", SWITCHES)
def test_every_value_of_a_switch_gives_a_run_of_its_own(
    make_job: JobMaker, tmp_path: Path, record_property: RecordProperty, path: str
) -> None:
    record_property("field", path)
    # Without prior preservation, which it refuses, LoRA is DreamBoothLoRA.
    prior = {"training.priorPreservation.enabled": True} if path == "training.method" else {}
    companions = {**matrix.COMPANIONS.get(path, {}), **prior}
    outcomes: list[dict[str, Any]] = []
    for value in matrix.parameters(matrix.CPU)[path]:
        row = {**companions, path: value}
        if path == "training.lrScheduler" and value == "constant":
            row["training.lrWarmupSteps"] = 0  # with one it is constant_with_warmup
        mine = outcome(make_job, tmp_path, row)
        assert all(mine != other for other in outcomes), value
        outcomes.append(mine)
