"""Scores by models of the store, in the records, the manifest, the status and the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_api.profile import ScoringModels, StoreModel
from lora_trainer.errors import BadConfigurationError
from tests.integration.train.conftest import JobMaker
from tests.unit.train.test_scoring import write_scoring_models

VALIDATION = {"everySteps": 2, "publish": "BestScore"}


def test_the_step_with_the_best_score_is_published(make_job: JobMaker, tmp_path: Path) -> None:
    job = make_job(validation=VALIDATION)
    models = {}
    for name, folder in zip(
        ("likeness", "fidelity"), write_scoring_models(tmp_path / "scoring"), strict=True
    ):
        models[name] = StoreModel(source="store", key=f"scoring/{tmp_path.name}/{name}/")
        for path in folder.iterdir():
            job.store.input.put_file(f"{models[name].key}{path.name}", path)
    result = job.with_config(scoring=ScoringModels.model_validate(models)).run()
    measured = {record["step"]: record for record in job.records() if record["score"] is not None}
    assert list(measured) == [2, 4]
    best = max(measured, key=lambda step: measured[step]["score"])
    selection = job.manifest().selection
    assert selection is not None
    assert (selection.step, selection.score) == (best, measured[best]["score"])
    assert 0 < measured[best]["likeness"] <= 1
    assert measured[best]["fidelity"] > 0
    assert result.adapter is not None
    assert result.adapter.likeness == f"{measured[best]['likeness']:.2f}"
    assert "Likeness and prompt fidelity" in job.attempt_file("report.html").decode()


def test_scores_need_models_of_the_profile(make_job: JobMaker) -> None:
    with pytest.raises(BadConfigurationError, match="the profile has no scoring models"):
        make_job(validation=VALIDATION).run()
