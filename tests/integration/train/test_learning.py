"""Training teaches what its images show: one concept, the real training stage, and a classifier."""

from __future__ import annotations

from pathlib import Path

from benchmarks.trials import Workbench
from lora_cli.local.seaweed import Seaweed
from tools.shapes import classifier, concepts, pipeline
from tools.shapes.scores import score


def test_an_adapter_generates_its_concept_for_prompts_with_the_token(
    seaweed: Seaweed, tmp_path: Path
) -> None:
    concept = concepts.CONCEPTS[0]
    model = classifier.load()
    base_model = pipeline.load()
    base, _ = score(base_model, concept, model, samples=1)
    workbench = Workbench.open(tmp_path / "work", seaweed, pipeline.FOLDER)
    captions = concepts.captions(concept, concepts.Captions.GOOD)
    trained = workbench.train(workbench.prepare(concept.class_name, concepts.images(concept), captions))
    base_model.load_lora_weights(trained.adapter)
    adapted, _ = score(base_model, concept, model)
    assert base.concept <= 0.1
    assert adapted.concept >= 0.7, (base, adapted)
    assert adapted.prompt >= 0.8 * base.prompt, (base, adapted)
