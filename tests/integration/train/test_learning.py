"""That training teaches what its images show: one concept, the real step, a judge."""

from __future__ import annotations

from pathlib import Path

from benchmarks.trials import Workbench
from lora_cli.local.seaweed import Seaweed
from tools.shapes import concepts, judge, pipeline
from tools.shapes.scores import score


def test_an_adapter_draws_its_concept_where_it_is_told_to(seaweed: Seaweed, tmp_path: Path) -> None:
    concept = concepts.CONCEPTS[0]
    model = judge.load()
    painter = pipeline.load()
    base, _ = score(painter, concept, model, samples=1)
    trained = Workbench.open(tmp_path / "work", seaweed, pipeline.FOLDER).train(
        concept, concepts.images(concept), concepts.captions(concept, concepts.Captions.GOOD)
    )
    painter.load_lora_weights(trained.adapter)
    adapted, _ = score(painter, concept, model)
    assert base.concept <= 0.1
    assert adapted.concept >= 0.7, (base, adapted)
    assert adapted.prompt >= 0.8 * base.prompt, (base, adapted)
