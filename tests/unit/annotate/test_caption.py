from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_api.job import Concept
from lora_trainer.annotate.caption import (
    CAPTION_WORDS,
    Fields,
    InvalidCaptionError,
    assemble,
    parse_reply,
    reply_schema,
    template,
)
from lora_trainer.annotate.tokens import TEXT_TOKENS, count_tokens

CONCEPT = Concept(token="CUS", class_name="statue")


def reply(**fields: str) -> str:
    return json.dumps(dict.fromkeys(Fields.model_fields, "") | fields)


def caption(**fields: str) -> str:
    return assemble(parse_reply(reply(**fields), CONCEPT), CONCEPT)


def test_fields_become_a_sentence_in_order():
    assert (
        caption(lighting="soft evening light.", framing="close-up from below", setting="in a park")
        == "a photo of CUS statue, close-up from below, in a park, soft evening light"
    )


def test_fields_are_dropped_from_the_end_until_it_fits():
    long = "with some fourteen words that take their room in every single caption here"
    text = caption(**dict.fromkeys(Fields.model_fields, long))
    assert text.startswith("a photo of CUS statue, with some")
    assert len(text.split()) <= CAPTION_WORDS
    assert text.endswith(long)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("A photo of a dog on a lawn.", "schema"),
        ('{"framing": "close"}', "schema"),
        (reply()[:-1], "schema"),
        (json.dumps(json.loads(reply(framing="x")) | {"tool": "rm -rf"}), "schema"),
        (json.dumps(json.loads(reply()) | {"pose": ["a"]}), "schema"),
        (reply(), "describes nothing"),
        (reply(framing=" . ", pose="\x00\u200b"), "describes nothing"),
        (reply(framing="I'm sorry, I can't help with that"), "declined"),
        (reply(pose="I’m sorry, but I can’t say"), "declined"),
        (reply(other="As an AI, I am unable to identify people"), "declined"),
        (reply(framing="x" * 30_000), "longer"),
    ],
)
def test_a_reply_that_is_no_caption_is_refused(text, reason):
    with pytest.raises(InvalidCaptionError, match=reason):
        parse_reply(text, CONCEPT)


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("close-up of CUS, cus statue", "close-up of , statue"),
        ("on a\nlawn\t\x07with\u202e trees", "on a lawn with trees"),
        ("<|endoftext|> on grass", "on grass"),
        ("This image shows a lawn", "a lawn"),
        ("Sure, on a lawn", "on a lawn"),
        ("sure-footed on a rock", "sure-footed on a rock"),
        ("CUSTOM frame", "CUSTOM frame"),
        (
            "one two three four five six seven eight nine ten eleven twelve 13 14 15 16",
            "one two three four five six seven eight nine ten eleven twelve 13 14",
        ),
    ],
)
def test_phrases_are_cleaned(dirty, clean):
    assert parse_reply(reply(setting=dirty), CONCEPT).setting == clean


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({name: st.text(max_size=300) for name in Fields.model_fields}))
def test_whatever_the_fields_say_the_caption_is_valid_or_refused(fields):
    try:
        text = caption(**fields)
    except InvalidCaptionError:
        return
    assert text.startswith(template(CONCEPT))
    assert text.lower().split().count("cus") == 1
    assert count_tokens(text) <= TEXT_TOKENS
    assert text.isprintable()


def test_the_schema_allows_nothing_but_the_fields():
    schema = reply_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == set(schema["properties"]) == set(Fields.model_fields)
