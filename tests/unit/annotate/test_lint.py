from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lora_cli.captions import app
from lora_trainer.annotate.lint import Problem, check_captions, usual_token

GOOD = {
    "0.png": "a photo of CUS statue, close-up, on a green lawn",
    "1.png": "a photo of CUS statue, seen from behind, indoors at night",
    "2.png": "a photo of CUS statue, half in shadow, on a wooden table",
}


def problems(text: str, token: str = "CUS", noun: str = "") -> set[Problem]:
    findings = check_captions(GOOD | {"bad.png": text}, token, noun)
    assert {finding.file_name for finding in findings} <= {"bad.png"}
    return {finding.problem for finding in findings}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of CUS statue under a tree", set()),
        ("", {Problem.EMPTY}),
        ("  \n", {Problem.EMPTY}),
        ("a photo of a statue under a tree", {Problem.MISSING_TOKEN}),
        ("a photo of CUSTOM statue", {Problem.MISSING_TOKEN}),
        ("a photo of CUS sculpture under a tree", {Problem.OTHER_CLASS}),
        ("Here is CUS statue in the rain", {Problem.PREAMBLE}),
        ("This image shows CUS statue in the rain", {Problem.PREAMBLE}),
        ("I'm sorry, I cannot describe CUS statue", {Problem.REFUSAL}),
        ("I can't help with CUS statue", {Problem.REFUSAL}),
        ("CUS statue in the rain, wet and in the rain", {Problem.REPEATED_PHRASE}),
        ("CUS statue " + " ".join(f"word{n}" for n in range(60)), {Problem.OVER_BUDGET}),
        ("A photo of CUS  statue, close-up, on a green lawn", {Problem.DUPLICATE}),
    ],
)  # fmt: skip
def test_each_problem_is_found(text, expected):
    assert problems(text) == expected


@pytest.mark.parametrize("quote", ["「{}」", "『{}』", "《{}》", "‹{}›", "＂{}＂", "„{}“", "«{}»"])
def test_words_in_the_quotation_marks_of_any_language_are_those_of_a_sign(quote):
    for words in ("申し訳ありません", "Es tut mir leid", "I'm sorry, I can't"):
        assert not problems(f"a photo of CUS statue, beside a poster {quote.format(words)}, on a green lawn")
        assert problems(f"a photo of CUS statue, beside a poster, {words}")


@pytest.mark.parametrize(
    "text", ["[object Object]", "Error 429: Too many requests", "HTTP 503 Service Unavailable"]
)
def test_what_scripts_write_in_the_place_of_a_caption_is_found(text):
    assert problems(f"a photo of CUS statue, {text}")


def test_the_class_may_be_given():
    assert problems("a photo of CUS statue at dawn", noun="statue") == set()
    findings = check_captions(GOOD, "CUS", "vase")
    assert {finding.problem for finding in findings} == {Problem.OTHER_CLASS}
    assert len(findings) == 3


def test_the_trigger_is_guessed_from_most_captions():
    assert usual_token(GOOD) == "CUS"
    assert usual_token({"0": "a photo of a dog", "1": "a photo of a cat"}) == ""
    assert usual_token({}) == ""


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_check_reads_metadata(tmp_path):
    rows = [{"file_name": name, "text": text, "crop": [0, 0, 1, 1]} for name, text in GOOD.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    result = run("check", tmp_path)
    assert result.exit_code == 0, result.output
    assert "3 captions, 0 with problems, token 'CUS'" in result.output

    rows[1]["text"] = "a nice image"
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    result = run("check", tmp_path, "--token", "CUS", "--class", "statue")
    assert result.exit_code == 1
    assert "1.png: missing-token" in result.output


def test_check_reads_text_files_beside_images(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a.txt").write_text("a photo of CUS statue")
    result = run("check", tmp_path)
    assert result.exit_code == 1
    assert "b.jpg: empty" in result.output


@pytest.mark.parametrize("content", [None, "no json\n", '{"file_name": "x"}\n'])
def test_check_says_what_it_cannot_read(tmp_path, content):
    if content:
        (tmp_path / "metadata.jsonl").write_text(content)
    assert run("check", tmp_path).exit_code == (65 if content else 64)
