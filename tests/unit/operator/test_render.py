"""What `lora-operator render` prints is what the operator would create."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lora_api.stages import stage_config_adapter
from lora_operator import names
from lora_operator.__main__ import main

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart"


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_ANNOTATE_IMAGE", "annotate:1")
    monkeypatch.setenv("LORA_TRAIN_IMAGE", "train:1")
    monkeypatch.setenv("LORA_PROFILES", str(QUICKSTART / "profiles.yaml"))


def test_both_children_are_printed_as_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", str(QUICKSTART / "job.yaml")]) == 0
    annotate, train = yaml.safe_load_all(capsys.readouterr().out)
    assert [job["kind"] for job in (annotate, train)] == ["Job", "Job"]
    assert train["spec"]["template"]["spec"]["containers"][0]["image"] == "train:1"
    text = train["spec"]["template"]["metadata"]["annotations"][names.STAGE_CONFIG]
    assert stage_config_adapter.validate_json(text).spec.training.max_steps == 300


def test_a_job_that_would_not_be_accepted_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = yaml.safe_load((QUICKSTART / "job.yaml").read_text())
    job["spec"]["baseModel"] = "nope"
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    assert main(["render", str(path)]) == 64
    assert "spec.baseModel" in capsys.readouterr().err
    assert main(["render", str(tmp_path / "nowhere.yaml")]) == 64
