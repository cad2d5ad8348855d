"""Manifests that are made to break or to delay the command: each is refused by a named error, soon."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from lora_cli.job_file import InvalidManifestError, parse_job
from lora_cli.manifests import reader
from lora_cli.manifests.reader import ManifestError, read_documents

HEAD = "apiVersion: lora-training.io/v1alpha1\nkind: LoraTrainingJob\nmetadata: {name: a}\nspec:\n"
LETTERS = "abcdefghijklmnopqrst"


def laughs(form: str, count: int) -> str:
    """Aliases of aliases: each line has `count` times what the line before has."""
    lines = [
        f"{line}: &{line} " + form.format(",".join([f"*{before}"] * count))
        for before, line in pairwise(LETTERS)
    ]
    return "\n".join(["a: &a {k: 1}", *lines])


BOMBS = {
    "aliases": laughs("[{}]", 10),
    "merges": laughs("{{<<: [{}]}}", 10),
    "merges of nothing": laughs("{{<<: [{}]}}", 10).replace("{k: 1}", "{}"),
    "an alias of itself": "a: &a [*a]",
    "a merge of itself": "a: &a {<<: *a}",
    "flow": "[" * 20_000,
    "blocks": "".join("  " * depth + "a:\n" for depth in range(1200)),
    "decimal digits": "a: " + "1" * 5000,
    "hexadecimal digits": "a: 0x" + "f" * 5000,
    "underscores": "a: " + "1_" * 5000 + "1",
    "an exponent": "a: 1e99999",
    "JSON digits": '{"a": ' + "1" * 5000 + "}",
    "JSON NaN": '{"a": NaN}',
    "JSON infinity": '{"a": 1e999}',
    "JSON nesting": '{"a":' * 100_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reader, "MAX_NODES", 5000)
    with pytest.raises(ManifestError) as refused:
        read_documents(BOMBS[name])
    assert len(str(refused.value)) < 200
    indented = "".join(f"  {line}\n" for line in BOMBS[name].splitlines())
    with pytest.raises(InvalidManifestError):
        parse_job(HEAD + indented, "job.yaml")
    assert list(tmp_path.iterdir()) == []


def test_a_tag_of_python_makes_no_object(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("!!python/object/apply:os.system ['touch pwned']", "!!python/name:os.system x"):
        with pytest.raises(InvalidManifestError):
            parse_job(text, "job.yaml")
    assert list(tmp_path.iterdir()) == []


def test_a_number_keeps_its_value_up_to_the_limit() -> None:
    (document,) = read_documents(json.dumps({"a": 10**20, "b": -5, "c": 1.5}))
    assert document.data == {"a": 10**20, "b": -5, "c": 1.5}
