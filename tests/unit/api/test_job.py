"""The resource: what is accepted, what is refused and with which words."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest

from lora_api.job import Adapter, InvalidResourceError, Targets, parse_job_document, parse_spec
from lora_api.rules import RULES, advice
from tests.support.bad_specs import BAD
from tests.support.builders import wire_spec


@pytest.mark.parametrize(("change", "word"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_specs_are_refused_and_the_field_is_named(change: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidResourceError, match=rf"spec\.?.*{re.escape(word)}"):
        parse_spec(wire_spec(**change))


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(InvalidResourceError, match=r"spec\.training\.rnak"):
        parse_spec(wire_spec(training={"rnak": 8}))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"training": None}, "spec.training"),
        ({"training": {"learningRate": None}}, "spec.training.learningRate"),
        ({"training": {"rank": None}}, "spec.training.rank"),
        ({"training": {"lrScheduler": None}}, "spec.training.lrScheduler"),
        ({"training": {"preview": {"prompts": [None]}}}, "spec.training.preview.prompts.0"),
        ({"output": {"formats": [None]}}, "spec.output.formats.0"),
        ({"annotation": {"model": None}}, "spec.annotation.model"),
    ],
)
def test_null_is_refused_in_plain_words(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidResourceError) as refused:
        parse_spec(wire_spec(**change))
    assert str(refused.value) == f"{field}: is null: give it a value, or leave it out"


def test_the_least_spec_has_the_documented_defaults() -> None:
    spec = parse_spec(wire_spec())
    assert spec.training.learning_rate == Decimal("0.0001")
    assert spec.training.to_wire()["snrGamma"] == "5"
    assert (spec.training.max_steps, spec.training.rank, spec.training.resolution) == (500, 16, 1024)
    assert spec.run_policy.child_ttl_seconds_after_finished == 86400
    assert spec.annotation.limits.max_cost_usd is None


def test_every_rule_has_a_spec_that_breaks_it_alone() -> None:
    broken = set()
    for _, change, _ in BAD:
        try:
            parse_spec(wire_spec(**change))
        except InvalidResourceError as error:
            broken |= {rule.message for rule in RULES if rule.message in str(error)}
    assert broken == {rule.message for rule in RULES}


@pytest.mark.parametrize(
    ("optimizer", "rate", "text_rate"),
    [("AdamW", "0.0001", "0.000005"), ("Prodigy", "1", "1"), ("ProdigyScheduleFree", "1", "1")],
)
def test_each_optimizer_has_its_own_default_rate(optimizer: str, rate: str, text_rate: str) -> None:
    training = parse_spec(wire_spec(training={"optimizer": optimizer})).training
    assert (training.to_wire()["learningRate"], training.text_encoder.to_wire()["learningRate"]) == (
        rate,
        text_rate,
    )


@pytest.mark.parametrize("optimizer", ["AdamW", "Prodigy", "ProdigyScheduleFree"])
@pytest.mark.parametrize(
    ("training", "field"),
    [
        ({"learning_rate": None}, "learning_rate"),
        ({"text_encoder": {"train": True}}, "text_encoder"),
        ({"token_embeddings": {}}, "token_embeddings"),
        ({"textEncoder": {"train": True, "learning_rate": None}}, "learning_rate"),
    ],
)
def test_python_names_are_refused_with_every_optimizer(
    optimizer: str, training: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidResourceError, match=rf"{field}: is not a field"):
        parse_spec(wire_spec(training={"optimizer": optimizer, **training}))


@pytest.mark.parametrize("optimizer", ["Prodigy", "ProdigyScheduleFree"])
def test_a_variants_rate_is_that_of_its_text_encoders_with_prodigy(optimizer: str) -> None:
    variants = [{"name": "half", "learningRate": "0.5"}]
    training = {"optimizer": optimizer, "variants": variants, "validation": {"everySteps": 1}}
    (variant,) = parse_spec(wire_spec(training=training)).training.trainings().values()
    assert variant.text_encoder.to_wire()["learningRate"] == "0.5"


def test_a_variant_keeps_an_explicit_rate_of_the_text_encoders() -> None:
    training = {
        "optimizer": "ProdigyScheduleFree",
        "textEncoder": {"train": True, "learningRate": "0.2"},
        "variants": [{"name": "half", "learningRate": "0.5"}],
        "validation": {"everySteps": 1},
    }
    (variant,) = parse_spec(wire_spec(training=training)).training.trainings().values()
    assert variant.text_encoder.to_wire()["learningRate"] == "0.2"


@pytest.mark.parametrize(
    ("training", "field"),
    [
        ({"method": "DreamBoothExtract", "alpha": 32}, "training.alpha"),
        ({"method": "DreamBoothExtract"}, "training.learningRate is above"),
        (
            {"method": "DreamBoothExtract", "learningRate": "5e-6", "extraction": {"factorSteps": 5}},
            "training.extraction.factorSteps",
        ),
        ({"validation": {"everySteps": 5, "heldOutImages": 3, "samples": 2}}, "training.validation: samples"),
        (
            {"maxSteps": 10, "lrWarmupSteps": 6, "tokenEmbeddings": {"train": True}},
            "training.tokenEmbeddings.stopAfter",
        ),
        (
            {"maxSteps": 2, "lrWarmupSteps": 1, "tokenEmbeddings": {"train": True}},
            "training.tokenEmbeddings.stopAfter",
        ),
        ({"learningRate": "1e-30"}, "training.learningRate is below"),
        (
            {"textEncoder": {"train": True, "learningRate": "9e-9"}},
            "training.textEncoder.learningRate is below",
        ),
        (
            {"tokenEmbeddings": {"train": True, "learningRate": "1e-9"}},
            "training.tokenEmbeddings.learningRate is below",
        ),
        (
            {
                "variants": [{"name": "one"}, {"name": "two", "seed": 3}, {"name": "three", "rank": 16}],
                "validation": {"everySteps": 1},
            },
            "training.variants",
        ),
        (
            {"variants": [{"name": "one"}, {"name": "two", "seed": 3}], "validation": {"everySteps": 1}},
            "set validation.heldOutImages, or validation.scores or publish BestScore",
        ),
        ({"captionDropout": "1"}, "training.captionDropout"),
        ({"adapter": {"blocks": [{"block": "mid_block", "rank": 16}]}}, "training.adapter.blocks"),
        (
            {
                "rank": 8,
                "adapter": {
                    "targets": "Full",
                    "convolutionRank": 8,
                    "blocks": [{"block": "up_blocks.0", "rank": 4}, {"block": "mid_block", "rank": 8}],
                },
            },
            "training.adapter.blocks",
        ),
    ],
)
def test_settings_with_no_or_little_effect_are_warned_about(training: dict[str, Any], field: str) -> None:
    assert [message for message in advice(parse_spec(wire_spec(training=training))) if field in message]


EXTRACT = {"method": "DreamBoothExtract", "learningRate": "5e-6"}


def test_settings_that_take_effect_are_not_warned_about() -> None:
    for training in (
        {**EXTRACT, "alpha": 32, "rank": 32},
        {**EXTRACT, "alpha": 32, "learningRate": "2e-5", "extraction": {"factorSteps": 5}},
        {**EXTRACT, "alpha": 32, "textEncoder": {"train": True}},
        {"method": "DreamBoothExtract", "optimizer": "Prodigy"},
        {"alpha": 32, "validation": {"everySteps": 5, "heldOutImages": 2, "samples": 2}},
        {"maxSteps": 10, "lrWarmupSteps": 5, "tokenEmbeddings": {"train": True}},
        {"maxSteps": 2, "tokenEmbeddings": {"train": True}},
        {"learningRate": "1e-8", "textEncoder": {"train": True, "learningRate": "1e-8"}},
        {"adapter": {"blocks": [{"block": "mid_block", "rank": 0}, {"block": "up_blocks.0", "rank": 8}]}},
        {"adapter": {"blocks": [{"block": "mid_block", "rank": 16, "learningRateScale": "2"}]}},
        {
            "adapter": {
                "targets": "Full",
                "convolutionRank": 4,
                "blocks": [{"block": "mid_block", "rank": 16}],
            }
        },
        {
            "adapter": {"blocks": [{"block": "mid_block", "rank": 16}]},
            "variants": [{"name": "one"}, {"name": "two", "rank": 8}],
            "validation": {"everySteps": 1, "heldOutImages": 1},
        },
        *(
            {
                "variants": [{"name": "one"}, {"name": "two", "seed": 3}],
                "validation": {"everySteps": 1, **chosen_by},
            }
            for chosen_by in ({"heldOutImages": 1}, {"scores": True}, {"publish": "BestScore"})
        ),
        {"variants": [{"name": "one"}], "validation": {"everySteps": 1}},
        {"captionDropout": "0.99"},
    ):
        assert not advice(parse_spec(wire_spec(training=training)))


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
def test_other_documents_are_refused_with_their_kind(document: Any, words: str) -> None:
    with pytest.raises(InvalidResourceError, match=words):
        parse_job_document(document)


@pytest.mark.parametrize("name", ["статуя", "雕像", "gâteau", "t-shirt", "тест_1", "مزهرية"])
def test_class_names_may_be_of_any_script(name: str) -> None:
    assert parse_spec(wire_spec(concept={"token": "CUS", "className": name})).concept.class_name == name


@pytest.mark.parametrize(
    "name", ["", " dog", "dog ", "a,b", "<b>", "a\nb", "a\u2028b", "dog.", "a\u202eb", "$(x)"]
)
def test_class_names_are_words(name: str) -> None:
    with pytest.raises(InvalidResourceError):
        parse_spec(wire_spec(concept={"token": "CUS", "className": name}))


def test_a_prefix_is_a_folder() -> None:
    for prefix in ("customers/cat", "customers/cat/"):
        assert parse_spec(wire_spec(dataset={"prefix": prefix})).dataset.prefix == "customers/cat/"


@pytest.mark.parametrize(
    ("scheduling", "words"),
    [
        ({"nodeSelector": {"no key!": "x"}}, "not a valid label key"),
        ({"nodeSelector": {"a/b/c": "x"}}, "not a valid label key"),
        ({"nodeSelector": {"x" * 64: "x"}}, "not a valid label key"),
        ({"tolerations": [{"value": "x"}]}, "operator must be Exists"),
        ({"tolerations": [{"key": "a", "operator": "Exists", "value": "x"}]}, "value must be empty"),
        ({"tolerations": [{"key": "a", "tolerationSeconds": 5}]}, "NoExecute"),
        ({"tolerations": [{"key": "x" * 64, "operator": "Exists"}]}, "label key"),
    ],
)
def test_what_kubernetes_would_refuse_in_a_pod_is_refused_before_captions_are_paid_for(
    scheduling: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidResourceError, match=words):
        parse_spec(wire_spec(scheduling=scheduling))


@pytest.mark.parametrize(
    "name", ["requests.nvidia.com/gpu", "kubernetes.io/gpu", "-a.com/gpu", f"a.com/{'x' * 64}"]
)
def test_a_gpu_must_be_an_extended_resource(name: str) -> None:
    with pytest.raises(InvalidResourceError, match="gpuResource"):
        parse_spec(wire_spec(resources={"train": {"gpuResource": name}}))


def test_a_spec_above_64_kb_is_refused_without_being_repeated() -> None:
    many = {f"k{i}": "x" * 60 for i in range(2000)}
    with pytest.raises(InvalidResourceError, match="at most 65536 bytes") as refused:
        parse_spec(wire_spec(scheduling={"nodeSelector": many}))
    assert len(str(refused.value)) < 200


def test_an_error_stays_short_whatever_was_in_the_spec() -> None:
    with pytest.raises(InvalidResourceError, match="more errors") as refused:
        parse_spec(wire_spec(**{f"{'x' * 200}{i}": 1 for i in range(100)}))
    assert len(str(refused.value)) <= 2000


@pytest.mark.parametrize("name", ["../../x", "A", "", "a/b", "x" * 254, "a..b", "-a", "a\n"])
@pytest.mark.parametrize("field", ["name", "namespace"])
def test_names_that_would_become_paths_or_arguments_are_refused(field: str, name: str) -> None:
    document = {
        "apiVersion": "lora-training.io/v1alpha1",
        "kind": "LoraTrainingJob",
        "metadata": {"name": "statue", field: name},
        "spec": wire_spec(),
    }
    with pytest.raises(InvalidResourceError, match=f"metadata.{field}"):
        parse_job_document(document)


def test_a_variant_replaces_settings_of_the_job() -> None:
    training = parse_spec(
        wire_spec(
            training={
                "rank": 8,
                "validation": {"everySteps": 50},
                "variants": [
                    {"name": "same"},
                    {"name": "wide", "targets": "Full", "maxSteps": 800, "rank": 32, "alpha": 4},
                    {"name": "other", "learningRate": "5e-5", "seed": 7},
                ],
            }
        )
    ).training
    trainings = training.trainings()
    same = training.model_copy(update={"variants": []})
    assert trainings["same"] == same
    wide = {"max_steps": 800, "rank": 32, "alpha": 4, "adapter": Adapter(targets=Targets.FULL)}
    assert trainings["wide"] == same.model_copy(update=wide)
    assert trainings["other"] == same.model_copy(update={"learning_rate": Decimal("0.00005"), "seed": 7})
    assert training.total_steps == 500 + 800 + 500
    assert same.trainings() == {"": same}


def test_the_settings_of_a_variant_must_go_together() -> None:
    training = {
        "lrWarmupSteps": 100,
        "validation": {"everySteps": 50},
        "variants": [{"name": "job"}, {"name": "short", "maxSteps": 100}],
    }
    with pytest.raises(
        InvalidResourceError, match=r"training\.variants: with short, training\.lrWarmupSteps must be below"
    ):
        parse_spec(wire_spec(training=training))


def test_the_rate_of_a_variant_is_that_of_all_parameters_with_prodigy() -> None:
    training = {
        "optimizer": "Prodigy",
        "validation": {"everySteps": 50},
        "textEncoder": {"train": True},
        "variants": [{"name": "job"}, {"name": "slow", "learningRate": "0.5"}],
    }
    slow = parse_spec(wire_spec(training=training)).training.trainings()["slow"]
    assert slow.learning_rate == slow.text_encoder.learning_rate == Decimal("0.5")
