"""The resource: what is accepted, what is refused and with which words."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from builders import wire_spec
from corpus import BAD
from lora_api.job import InvalidResourceError, parse_job_document, parse_spec


@pytest.mark.parametrize(("change", "word"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_specs_are_refused_and_the_field_is_named(change: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidResourceError, match=rf"spec\.?.*{word}"):
        parse_spec(wire_spec(**change))


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(InvalidResourceError, match=r"spec\.training\.rnak"):
        parse_spec(wire_spec(training={"rnak": 8}))


def test_the_least_spec_has_the_documented_defaults() -> None:
    spec = parse_spec(wire_spec())
    assert spec.training.learning_rate == Decimal("0.0001")
    assert spec.training.to_wire()["snrGamma"] == "5"
    assert (spec.training.max_steps, spec.training.rank, spec.training.resolution) == (500, 16, 1024)
    assert spec.run_policy.child_ttl_seconds_after_finished == 86400
    assert spec.annotation.limits.max_cost_usd == 1


def test_what_goes_out_comes_back() -> None:
    spec = parse_spec(wire_spec(training={"learningRate": "3.5e-5"}, runPolicy={"activeDeadlineSeconds": 9}))
    assert parse_spec(spec.to_wire()) == spec


def test_one_number_has_one_spelling() -> None:
    spellings = ["1e-4", "0.0001", "0.00010", "1E-04"]
    wires = {
        parse_spec(wire_spec(training={"learningRate": s})).training.to_wire()["learningRate"]
        for s in spellings
    }
    assert wires == {"0.0001"}


def test_null_means_absent() -> None:
    spec = parse_spec(wire_spec(runPolicy={"startDeadlineSeconds": None}))
    assert spec.run_policy.start_deadline_seconds is None
    assert "startDeadlineSeconds" not in spec.run_policy.to_wire()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (None, "not a LoraTrainingJob"),
        ([], "not a LoraTrainingJob"),
        ({"apiVersion": "v1", "kind": "Pod"}, "lora-training.io/v1alpha1"),
        ({"apiVersion": "lora-training.io/v1alpha1", "kind": "LoraTrainingJob"}, "metadata.name"),
    ],
)
def test_another_document_is_told_apart(document: Any, words: str) -> None:
    with pytest.raises(InvalidResourceError, match=words):
        parse_job_document(document)
