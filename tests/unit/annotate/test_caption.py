from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_api.job import Concept, ConceptType
from lora_trainer.annotate.caption_format import (
    CAPTION_WORDS,
    DeclinedError,
    UnusableReplyError,
    assemble,
    clean_phrase,
    parse_reply,
    template,
)
from lora_trainer.annotate.concept_fields import FIELDS, reply_schema
from lora_trainer.annotate.tokens import TEXT_TOKENS, count_tokens

CONCEPT = Concept(token="CUS", class_name="statue")
NAMES = list(FIELDS[ConceptType.SUBJECT])


def reply(**fields: str) -> str:
    return json.dumps(dict.fromkeys(NAMES, "") | fields)


def caption(**fields: str) -> str:
    return assemble(parse_reply(reply(**fields), CONCEPT), CONCEPT)


def test_fields_become_a_sentence_in_order():
    assert (
        caption(lighting="soft evening light.", framing="close-up from below", setting="in a park")
        == "a photo of CUS statue, close-up from below, in a park, soft evening light"
    )


def test_fields_are_dropped_from_the_end_until_it_fits():
    words = [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
    ]
    text = caption(**{name: " ".join(f"{word}{name[:2]}" for word in words) for name in NAMES})
    assert text.startswith("a photo of CUS statue, alphafr")
    assert len(text.split()) <= CAPTION_WORDS
    assert text.split()[-1].startswith("nu")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("A photo of a dog on a lawn.", "none of the fields"),
        (reply()[:-1], "none of the fields"),
        (json.dumps({"answer": "close-up"}), "none of the fields"),
        (reply(), "describes nothing"),
        (reply(framing=" . ", pose="\x00\u200b"), "describes nothing"),
        (reply(framing="N/A", pose="none", setting="not applicable"), "describes nothing"),
        (json.dumps(dict.fromkeys(NAMES, "on a green lawn")), "describes nothing"),
        (reply(setting="auf einem grünen Rasen mit Bäumen"), "German"),
        (reply(setting="在绿色的草地上"), "Cjk"),
        ("x" * 300_000, "longer"),
    ],
)
def test_a_reply_that_is_no_caption_is_refused(text, reason):
    with pytest.raises(UnusableReplyError, match=reason):
        parse_reply(text, CONCEPT)


@pytest.mark.parametrize(
    "text",
    [
        reply(framing="I'm sorry, I can't help with that"),
        reply(pose="I’m sorry, but I can’t say"),
        reply(other="As an AI, I am unable to identify people"),
        reply(framing="unable to identify the person"),
        reply(setting="抱歉，我无法描述这张图片"),
        "I'm sorry, but I can't help with identifying people.",
        '{"error": "I cannot describe this image"}',
        '{"reason": "Lo siento, no puedo ayudar con eso", "result": null}',
    ],
)
def test_a_reply_that_declines_is_the_models_refusal(text):
    with pytest.raises(DeclinedError):
        parse_reply(text, CONCEPT)


REFUSALS = """
I must respectfully decline to describe this picture.
Your request was flagged.
The image contains a person, and identifying them is not something I do.
Es tut mir leid, aber dabei kann ich nicht helfen.
Je suis désolé, mais je ne peux pas décrire cette image.
Lo siento, pero no puedo ayudarte con esta imagen.
Mi dispiace, non posso aiutarti con questa richiesta.
Desculpe, mas não posso ajudar com isso.
Het spijt me, daar kan ik niet mee helpen.
Przykro mi, ale nie mogę w tym pomóc.
Üzgünüm, bu görseli açıklayamıyorum.
Извините, я не могу помочь с этим.
不好意思，我看不到图片
我没有办法描述这张图片。
申し訳ありませんが、そのご要望にはお応えできません。
이 요청은 처리해 드릴 수 없어요
لا استطيع وصف هذه الصورة
मुझे खेद है, मैं इस छवि का वर्णन नहीं कर सकता
Xin lỗi, tôi không thể giúp với yêu cầu này.
Maaf, saya tidak dapat membantu dengan itu.
ขออภัย ฉันไม่สามารถช่วยเรื่องนั้นได้
מצטער, אני לא יכול לעזור עם זה.
Λυπάμαι, αλλά δεν μπορώ να βοηθήσω.
Omlouvám se, ale s tím vám nemohu pomoci.
Îmi pare rău, dar nu te pot ajuta cu asta.
Sajnálom, ebben nem tudok segíteni.
Valitettavasti en voi auttaa tässä.
متأسفم، نمی‌توانم کمک کنم.
দুঃখিত, আমি এতে সাহায্য করতে পারব না।
""".strip().splitlines()


@pytest.mark.parametrize("words", REFUSALS)
def test_refusals_in_many_languages_are_distinguished_from_unusable_replies(words):
    for text in (words, reply(framing=words), json.dumps({"error": words}, ensure_ascii=False)):
        with pytest.raises(DeclinedError):
            parse_reply(text, CONCEPT)


GOOD = reply(framing="close-up", setting="on a lawn")
EXPECTED = {"framing": "close-up", "setting": "on a lawn"}
DRAFT = reply(framing="a draft", setting="nowhere")
REASONING = {
    "Qwen": "<think>{}</think>",
    "Mistral": "[THINK]{}[/THINK]",
    "Kimi": "◁think▷{}◁/think▷",
    "Seed": "<seed:think>{}</seed:think>",
    "OpenThinker": "<|begin_of_thought|>{}<|end_of_thought|><|begin_of_solution|>",
    "MedGemma": "<unused94>thought\n{}<unused95>",
    "gpt-oss": "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
    "a prompt's tags": "<analysis>{}</analysis>",
}
LINES = "\n".join(f"- **{name.capitalize()}:** {EXPECTED.get(name, '')}" for name in NAMES)


@pytest.mark.parametrize("family", REASONING)
def test_drafts_in_the_reasoning_of_any_family_of_models_are_not_used(family):
    reasoning = REASONING[family].format(f"Perhaps {DRAFT}, or not.")
    for text in (reasoning + GOOD, reasoning * 2 + GOOD, reasoning.partition("Perhaps")[2] + GOOD):
        fields = parse_reply(text, CONCEPT)
        assert {name: phrase for name, phrase in fields.items() if phrase} == EXPECTED


def test_lines_of_a_reply_that_was_cut_off_are_not_read():
    with pytest.raises(UnusableReplyError):
        parse_reply(LINES, CONCEPT, truncated=True)
    with pytest.raises(UnusableReplyError):
        parse_reply("Setting: on a lawn\nFraming: close-up", CONCEPT)  # two lines may be prose


def test_a_long_reply_is_read_in_a_moment():
    started = time.process_time()
    key = '{"framing":'
    for text in (
        "<think></think>" * 12_000,
        "<think>" * 25_000,
        "{" * 190_000,
        "{'a': 1, " * 20_000,
        "\n" * 190_000 + "x",
        "<framing>" * 20_000,
        key * 15_000,
        (key + '"' * 1_900) * 90,
        (key + "=" * 1_900) * 90,
        "|" * 190_000,
    ):
        with pytest.raises(UnusableReplyError):
            parse_reply(text, CONCEPT)
    assert time.process_time() - started < 60


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "\ufeff" + GOOD,
        f"```json\n{GOOD}\n```",
        f"Here is the JSON you asked for:\n\n```\n{GOOD}\n```\nLet me know if you need more!",
        f"<think>The dog {{is}} on a lawn. I should say {{'framing': 1}}.</think>\n{GOOD}",
        f"the user wants fields...\n</think>\n\n{GOOD}",
        f"{GOOD}\n{reply(framing='something else')}",
        json.dumps({"framing": "close-up", "setting": "on a lawn"}),
        json.dumps({"Framing": "close-up", "SETTING": "on a lawn", "Pose ": None}),
        json.dumps(dict.fromkeys(NAMES) | EXPECTED | {"confidence": 0.9, "extra": {"a": [1]}}),
        json.dumps({"caption": EXPECTED}),
        json.dumps({"result": [{"fields": EXPECTED}]}),
        json.dumps([EXPECTED]),
        json.dumps(json.dumps(EXPECTED)),
        json.dumps({"framing": ["close-up"], "setting": {"text": "on a lawn"}, "pose": False}),
        GOOD[:-1] + ",}",
        GOOD.replace("close-up", "close-\nup").replace("close-\nup", "close-up\n"),
        json.dumps({"framing": "**close-up**", "setting": "Setting: on a lawn", "pose": "N/A"}),
        json.dumps({"framing": '"close-up"', "setting": "On a lawn.".lower(), "pose": "None."}),
        json.dumps({"framing": "- close-up", "setting": "`on a lawn`", "other": "not applicable"}),
        str(json.loads(GOOD)),
        str(EXPECTED | {"pose": None}) + " as you asked, {see}",
        GOOD.replace('"', "“"),
        GOOD.replace('"', '\\"'),
        GOOD.replace('"', "&quot;"),
        GOOD.replace('"pose"', '// nothing to see\n"pose"'),
        '{framing: "close-up", setting: "on a lawn", pose: "",}',
        json.dumps({name: {"type": "string", "value": phrase} for name, phrase in EXPECTED.items()}),
        json.dumps({"properties": {n: {"type": "string", "description": p} for n, p in EXPECTED.items()}}),
        LINES,
        "\n".join(f"{number}. {line}" for number, line in enumerate(LINES.splitlines(), 1)),
        GOOD[:-1],
        GOOD[:-1].replace(', "other": ""', ', "other": "a bird in the b'),
        GOOD.replace(",", ";").replace('": ', '" = '),
        GOOD.translate(str.maketrans({'"': "＂", ":": "：", ",": "，"})),
        GOOD.replace('"', '"\u200b'),
        json.dumps(json.loads(GOOD), indent=4).replace(" " * 4, "\u00a0" * 4),
        "".join(f"<{name}>{EXPECTED.get(name, '')}</{name}>\n" for name in NAMES),
        "".join(f'{name} = "{EXPECTED.get(name, "")}"\n' for name in NAMES),
        "| field | value |\n|---|---|\n"
        + "".join(f"| {name} | {EXPECTED.get(name, '')} |\n" for name in NAMES),
        json.dumps([{"name": name, "value": phrase} for name, phrase in EXPECTED.items()]),
        json.dumps([{name: phrase} for name, phrase in EXPECTED.items()]),
        "\n".join(json.dumps({name: phrase}) for name, phrase in EXPECTED.items()),
        json.dumps({"1. framing": "close-up", "Setting (where)": "on a lawn"}),
        json.dumps({"name": "caption", "arguments": GOOD}),
        json.dumps(reply_schema(ConceptType.SUBJECT)) + "\n" + GOOD,
        json.dumps(dict.fromkeys(NAMES, "string")) + "\n" + GOOD,
        f'Thinking: perhaps {{"framing": "a draft"}}?\n\nAnswer: {GOOD}',
        reply(
            framing="close-up",
            setting="on a lawn",
            clothing="N/A (a statue)",
            other="no other details visible",
        ),
        reply(
            framing="close-up",
            setting="on a lawn",
            pose="none visible",
            clothing="not applicable for a statue",
        ),
        reply(framing="close-up", setting="on a lawn", pose="empty string", other="無"),
    ],
)
def test_a_reply_is_read_tolerantly(text):
    fields = parse_reply(text, CONCEPT)
    assert {name: phrase for name, phrase in fields.items() if phrase} == EXPECTED


def test_a_sign_in_the_image_is_a_description():
    text = 'a sign that says "We are sorry, closed"'
    assert parse_reply(reply(setting=text), CONCEPT)["setting"] == text
    plain = "a door with the words We are sorry, closed"
    assert parse_reply(reply(setting=plain), CONCEPT)["setting"] == plain


def test_quotation_marks_of_a_sign_do_not_end_a_text():
    text = '{"framing": "close-up", "setting": "a shop with "SALE" in the window", "pose": ""}'
    assert parse_reply(text, CONCEPT)["setting"] == 'a shop with "SALE" in the window'


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("close-up of CUS, cus statue", "close-up of , statue"),
        ("on a\nlawn\t\x07with\u202e trees", "on a lawn with trees"),
        ("<|endoftext|> on grass", "on grass"),
        ("This image shows a lawn", "a lawn"),
        ("Sure, on a lawn", "on a lawn"),
        ("Pose: sitting", "sitting"),
        ("**sitting** on a lawn", "sitting on a lawn"),
        ("sure-footed on a rock", "sure-footed on a rock"),
        ("CUSTOM frame", "CUSTOM frame"),
        (
            "one two three four five six seven eight nine ten eleven twelve 13 14 15 16",
            "one two three four five six seven eight nine ten eleven twelve 13 14",
        ),
    ],
)
def test_phrases_are_cleaned(dirty, clean):
    assert clean_phrase(dirty, CONCEPT) == clean


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({name: st.text(max_size=300) for name in NAMES}))
def test_whatever_the_fields_say_the_caption_is_valid_or_refused(fields):
    try:
        text = caption(**fields)
    except (DeclinedError, UnusableReplyError):
        return
    assert text.startswith(template(CONCEPT))
    assert text.lower().split().count("cus") == 1
    assert count_tokens(text) <= TEXT_TOKENS
    assert text.isprintable()


def test_the_schema_allows_nothing_but_the_fields():
    schema = reply_schema(ConceptType.SUBJECT)
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == set(schema["properties"]) == set(NAMES)
