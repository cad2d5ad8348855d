"""Last words, hashes and keys: what the two sides must agree on to the byte."""

from __future__ import annotations

from builders import ADAPTER, CAPTIONED, wire_spec
from lora_api.job import parse_spec
from lora_api.keys import JobKeys, bought_caption, reuse_pointer
from lora_api.manifest import canonical_json, dataset_sha256, input_hash
from lora_api.reasons import Reason
from lora_api.status import DatasetStatus, PreviewStatus, SkippedImage
from lora_api.steps import Outcome, StepResult, decode_result, encode_result


def test_a_result_survives_the_termination_message() -> None:
    assert decode_result(encode_result(CAPTIONED).decode()) == CAPTIONED


def test_a_long_result_is_cut_to_4096_bytes_and_keeps_what_matters() -> None:
    skipped = [SkippedImage(key=f"p/{'ü' * 200}{i}.jpg", reason="truncated") for i in range(100)]
    previews = [PreviewStatus(step=1, prompt="x" * 500, key=f"k{i}") for i in range(16)]
    result = StepResult(
        outcome=Outcome.TRAINED,
        reason=Reason.TRAINED,
        message="é" * 9000,
        dataset=DatasetStatus(images=5, skipped=skipped),
        previews=previews,
        adapter=ADAPTER,
    )
    data = encode_result(result)
    assert len(data) <= 4096
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
        hashed(spec={"training": {"seed": 1}}),
        hashed(spec={"concept": {"token": "SKS", "className": "statue"}}),
    ]
    assert len({base, *changed}) == len(changed) + 1
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
    assert bought_caption("ns", "ab") == "ns/.captions/ab.json"
