"""Last words, hashes and keys: what the two sides must agree on to the byte."""

from __future__ import annotations

import json

import pytest

from lora_api.job import parse_spec
from lora_api.keys import JobKeys, cached_caption, reuse_pointer
from lora_api.manifest import canonical_json, dataset_sha256, input_hash
from lora_api.reasons import Reason
from lora_api.stages import Outcome, StageResult, TrainingResult, decode_result, encode_result
from lora_api.status import AdapterStatus, DatasetStatus, PreviewStatus, SkippedImage, write_number
from tests.support.builders import ADAPTER, CAPTIONED, TRAINED, wire_spec


@pytest.mark.parametrize("name", ["a\x1b[2Jb.safetensors", "../x", "\u202ex", "a//b", "a\\b"])
def test_an_adapter_at_an_address_that_is_no_key_is_no_result(name: str) -> None:
    wire = json.loads(encode_result(TRAINED))
    wire["adapter"]["uri"] = f"s3://loras/studio/statue/{name}"
    assert decode_result(json.dumps(wire)) is None


@pytest.mark.parametrize("loss", [0.08, -0.5, 1e30, float("inf"), float("nan"), 123456789.1])
def test_any_loss_is_part_of_a_result(loss: float) -> None:
    training = TrainingResult(final_step=5).model_copy(update={"final_loss": write_number(loss)})
    result = decode_result(encode_result(TRAINED.model_copy(update={"training": training})).decode())
    assert result is not None
    assert result.training is not None
    assert float(result.training.final_loss) == pytest.approx(loss, nan_ok=True)


def test_a_result_survives_the_termination_message() -> None:
    assert decode_result(encode_result(CAPTIONED).decode()) == CAPTIONED


@pytest.mark.parametrize(("result", "part"), [(TRAINED, "adapter"), (CAPTIONED, "captions")])
def test_a_result_that_was_cut_is_read_as_far_as_it_goes_or_not_at_all(
    result: StageResult, part: str
) -> None:
    whole = encode_result(result.model_copy(update={"message": "m" * 200})).decode()
    read = [decode_result(whole[:length]) for length in range(len(whole) + 1)]
    assert all(back is None or getattr(back, part) == getattr(result, part) for back in read)
    assert read[:80] == [None] * 80
    assert read[-1] is not None
    assert sum(back is not None for back in read) > 200, "the message at the end is not needed"


def test_the_longest_names_fit_into_the_share_of_one_container_among_ten() -> None:
    keys = JobKeys("n" * 63, "x" * 253, "u" * 36)
    adapter = AdapterStatus(
        uri=f"s3://{'b' * 63}/{keys.attempt(100)}adapter.safetensors",
        sha256="a" * 64,
        bytes=10**10,
        format="diffusers",
        manifest_key=keys.manifest(100),
        report_key=keys.report(100),
    )
    result = TRAINED.model_copy(update={"adapter": adapter, "message": "m" * 5000})
    data = encode_result(result)
    assert len(data) <= 12 * 1024 // 10
    back = decode_result(data.decode())
    assert back is not None
    assert back.adapter == adapter


def test_a_long_result_is_cut_to_1024_bytes_and_keeps_what_matters() -> None:
    skipped = [SkippedImage(key=f"p/{'ü' * 200}{i}.jpg", reason="truncated") for i in range(100)]
    previews = [PreviewStatus(step=1, prompt="x" * 500, key=f"k{i}") for i in range(16)]
    result = StageResult(
        outcome=Outcome.TRAINED,
        reason=Reason.TRAINED,
        message="é" * 9000,
        dataset=DatasetStatus(images=5, skipped=skipped),
        previews=previews,
        adapter=ADAPTER,
    )
    data = encode_result(result)
    assert len(data) <= 1024
    back = decode_result(data.decode())
    assert back is not None
    assert back.adapter == ADAPTER
    assert back.dataset is not None
    assert back.dataset.images == 5


def test_what_is_no_result_is_none() -> None:
    for message in ("", "Killed", "{}", '{"outcome": "won"}', "[1]"):
        assert decode_result(message) is None


def test_canonical_json_has_one_spelling() -> None:
    assert (
        canonical_json({"b": 1, "a": "ü"}) == canonical_json({"a": "ü", "b": 1}) == '{"a":"ü","b":1}'.encode()
    )


def test_a_dataset_is_its_objects_in_any_order() -> None:
    one, other = [("a", "1"), ("b", "2")], [("b", "2"), ("a", "1")]
    assert dataset_sha256(one) == dataset_sha256(other)
    assert dataset_sha256(one) != dataset_sha256([("a", "1"), ("b", "3")])
    assert dataset_sha256([("ab", "c")]) != dataset_sha256([("a", "bc")])


def hashed(**changes: object) -> str:
    spec = parse_spec(wire_spec(**changes.pop("spec", {})))  # type: ignore[arg-type]
    fields = {
        "dataset": "d",
        "captions": "c",
        "base_model": "m",
        "trainer_version": "1",
        "formats": ["kohya"],
    }
    return input_hash(concept=spec.concept, training=spec.training, **(fields | changes))  # type: ignore[arg-type]


def test_the_input_hash_depends_on_all_that_decides_an_adapter_and_on_nothing_else() -> None:
    base = hashed()
    changed = [
        hashed(dataset="x"),
        hashed(captions="x"),
        hashed(base_model="x"),
        hashed(trainer_version="2"),
        hashed(formats=["diffusers"]),
        hashed(captions_published=True),
        hashed(spec={"training": {"seed": 1}}),
        hashed(spec={"concept": {"token": "SKS", "className": "statue"}}),
    ]
    assert len({base, *changed}) == len(changed) + 1
    assert hashed(captions_published=False) == base
    assert hashed(spec={"resources": {"train": {"gpus": 4}}}) == base
    assert hashed(spec={"training": {"learningRate": "0.0001"}}) == base


def test_two_jobs_share_no_key_but_those_named_by_a_hash() -> None:
    one, other = JobKeys("ns", "job", "u1"), JobKeys("ns", "job", "u2")
    for pick in (
        lambda k: k.captions,
        lambda k: k.image(0),
        lambda k: k.manifest(1),
        lambda k: k.checkpoint_manifest(100),
    ):
        assert pick(one) != pick(other)
        assert pick(one).startswith(one.root)
    assert one.image(7) == "ns/job/u1/images/007.png"
    assert reuse_pointer("ns", "sha256:ab") == "ns/.reuse/ab.json"
    assert cached_caption("ns", "ab") == "ns/.captions/ab.json"
