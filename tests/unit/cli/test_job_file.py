"""Messages about a wrong manifest: one a line, with file, line, field, what was given and what must be there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lora_api.job import parse_spec
from lora_cli.errors import UsageError
from lora_cli.job_file import InvalidManifestError, assign, parse_job, read_job, read_jobs
from lora_cli.manifests.hints import find_hints
from lora_cli.manifests.reader import read_documents
from lora_cli.manifests.writer import dump_yaml
from tests.support.builders import wire_spec
from tests.support.quickstart import LORA

GOOD = """\
apiVersion: lora-training.io/v1alpha1
kind: LoraTrainingJob
metadata: {name: statue}
spec:
  dataset: {prefix: a/}
  concept: {token: CUS, className: statue}
  training:
    maxSteps: 5
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("maxSteps: 5", "max_steps: 5", "8: spec.training.max_steps: is not a field; did you mean maxSteps?"),
        ("maxSteps: 5", "maxStep: 5", "8: spec.training.maxStep: is not a field; did you mean maxSteps?"),
        ("maxSteps: 5", "maxSteps: 0", "8: spec.training.maxSteps: is 0; it must be at least 1"),
        ("maxSteps: 5", "maxSteps: five", '8: spec.training.maxSteps: is "five"; it must be a whole number'),
        (
            "maxSteps: 5",
            "learningRate: 1e-4",
            '8: spec.training.learningRate: is a number without quotes; write "0.0001"',
        ),
        ("maxSteps: 5", "optimizer: Adam", "did you mean AdamW?"),
        ("token: CUS", "token: yes", "6: spec.concept.token: is true; it must be text; put it in quotes"),
        (
            "maxSteps: 5",
            "maxSteps: 5\n    maxSteps: 6",
            "9: spec.training.maxSteps: the key 'maxSteps' is already set in line 8",
        ),
        ("name: statue", "name: X_y", '3: metadata.name: "X_y" must be'),
        ("kind: LoraTrainingJob", "kind: Job", '2: kind: is "Job"; it must be LoraTrainingJob'),
        ("dataset: {prefix: a/}", "dataset: {}", "5: spec.dataset.prefix: is missing"),
        ("    maxSteps: 5", "\tmaxSteps: 5", "8: is not valid YAML"),
        ("token: CUS", "token: &a [*a]", "6: is nested too deeply"),
        ("apiVersion", "%YAML 1.2\n---\napiVersion", "is not valid YAML: kubectl reads YAML 1.1, not 1.2"),
        ("spec:", "status: {phsae: Pending}\nspec:", "4: status.phsae: is not a field; did you mean phase?"),
        (
            "spec:",
            "status: {conditions: [{typ: Valid}]}\nspec:",
            "4: status.conditions[0].typ: is not a field; did you mean type?",
        ),
        (
            "{name: statue}",
            "{name: statue, finalizers: [1]}",
            "3: metadata.finalizers[0]: 1 must be [PREFIX/]",
        ),
        ("{name: statue}", "{name: statue, finalizers: [a b]}", '3: metadata.finalizers[0]: "a b" must be'),
        (
            "{name: statue}",
            "{name: statue, ownerReferences: [{apiVersion: v1, kind: Pod, name: x}]}",
            "3: metadata.ownerReferences[0].uid: is missing",
        ),
        (
            "{name: statue}",
            "{name: statue, ownerReferences: [{apiVersion: v1, kind: Pod, name: x, uid: z, controler: true}]}",
            "3: metadata.ownerReferences[0].controler: is not a field; did you mean controller?",
        ),
        (
            "{name: statue}",
            "{name: statue, creationTimestamp: today}",
            '3: metadata.creationTimestamp: "today" must be a time',
        ),
        ("{name: statue}", "{name: statue, generateName: A-}", '3: metadata.generateName: "A-" must be'),
    ],
)
def test_a_mistake_is_located_and_explained(old: str, new: str, message: str) -> None:
    with pytest.raises(InvalidManifestError) as refused:
        parse_job(GOOD.replace(old, new), "job.yaml")
    [line] = str(refused.value).splitlines()
    assert line.startswith("job.yaml:")
    assert message in line


def test_each_problem_has_its_line(tmp_path: Path) -> None:
    for name, old, new in (
        ("a.yaml", "maxSteps: 5", "maxSteps: 0\n    rank: 0"),
        ("b.yaml", "token: CUS", "tokn: CUS"),
    ):
        (tmp_path / name).write_text(GOOD.replace(old, new))
    ran = subprocess.run(
        [LORA, "validate", "a.yaml", "b.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 64
    starts = [line.split(" is ")[0] for line in ran.stderr.splitlines()]
    assert starts == [
        "lora: a.yaml:8: spec.training.maxSteps:",
        "lora: a.yaml:9: spec.training.rank:",
        "lora: b.yaml:6: spec.concept.token:",
        "lora: b.yaml:6: spec.concept.tokn:",
    ]


def test_stdin_and_several_documents_are_read(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(f"{GOOD}---\n{GOOD.replace('statue}', 'vase}')}---\n")
    ran = subprocess.run(
        [LORA, "validate", "-", str(tmp_path / "two.yaml")],
        input=GOOD,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert [line.split()[-3] for line in ran.stdout.splitlines()] == ["statue", "statue", "vase"]
    with pytest.raises(UsageError, match="holds 2 jobs"):
        read_job(tmp_path / "two.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("learningRate=0.005", "0.005"),
        ("learningRate=1e-4", "1e-4"),
        ('learningRate="5e-3"', "5e-3"),
        ("maxSteps=7", 7),
    ],
)
def test_a_number_on_the_command_line_needs_no_quotes(text: str, value: object) -> None:
    [job] = parse_job(GOOD, "job.yaml", [f"training.{text}"])
    assert job.document["spec"]["training"][text.partition("=")[0]] == value


def test_a_mistake_on_the_command_line_is_named_as_such() -> None:
    with pytest.raises(InvalidManifestError, match=r"--set training\.max_steps: .* did you mean maxSteps\?"):
        parse_job(GOOD, "job.yaml", ["training.max_steps=7"])
    with pytest.raises(UsageError, match="FIELD=VALUE"):
        assign({}, "x")


@pytest.mark.parametrize(
    ("token", "words"),
    [("statue", "is the class itself"), ("Dog", "is a common word"), ("woman", "is a common word")],
)
def test_a_token_with_a_meaning_is_warned_of(
    tmp_path: Path, token: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(GOOD.replace("CUS", token))
    read_jobs([file])
    assert words in capfd.readouterr().err


@pytest.mark.parametrize("token", ["CUS", "sks", "ohwx", "TOK", "zwx", "xyz42"])
def test_a_rare_token_is_not_warned_of(tmp_path: Path, token: str, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(GOOD.replace("CUS", token))
    read_jobs([file])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "text", ["5e-4", "1E-7", "y", "on", "08", "0x1F", "1_000", "~", "", "null", ".5", "plain", "a: b"]
)
def test_written_text_is_read_back_as_text(text: str) -> None:
    [document] = read_documents(dump_yaml({"value": text, "list": [text]}))
    assert document.data == {"value": text, "list": [text]}


@pytest.mark.parametrize("value", ["null", "~"])
def test_null_stands_for_the_default(value: str) -> None:
    (job,) = parse_job(GOOD, "job.yaml", [f"training.learningRate={value}", "training.optimizer=Prodigy"])
    assert job.spec.training.learning_rate == 1
    (job,) = parse_job(GOOD.replace("maxSteps: 5", "learningRate: null\n    adapter: ~"), "job.yaml")
    assert job.spec.training.to_wire() == parse_spec(wire_spec()).training.to_wire()


@pytest.mark.parametrize(
    "training",
    [
        {"validation": {"everySteps": 100, "patience": 5}},
        {"validation": {"everySteps": 500, "publish": "LowestHeldOutLoss"}},
        {"preview": {"everySteps": 500}},
        {"tokenEmbeddings": {"train": True}, "lrWarmupSteps": 300},
    ],
    ids=str,
)
def test_the_steps_of_a_recipe_are_not_taken_for_the_default(training: dict[str, Any]) -> None:
    plain = parse_spec(wire_spec(training=training))
    with_recipe = parse_spec(wire_spec(training={"recipe": "Auto", **training}))
    assert list(find_hints(plain))
    assert list(find_hints(with_recipe)) == []


def test_a_value_that_a_recipe_sets_is_warned_of() -> None:
    concept = {"token": "CUS", "className": "watercolor", "type": "Style"}
    spec = parse_spec(wire_spec(training={"recipe": "Person"}, concept=concept))
    assert [hint for hint in find_hints(spec) if "training.priorPreservation" in hint]


def test_documents_of_json_follow_each_other() -> None:
    """The form that `jq` prints and kubectl reads."""
    [job] = [document.data for document in read_documents(GOOD)]
    for separator in ("", "\n", "\n---\n"):
        text = separator.join(json.dumps(job) for _ in range(2))
        assert [job.name for job in parse_job(text, "job.json")] == ["statue", "statue"]
    with pytest.raises(InvalidManifestError, match=r"^job.json:2: spec\.training\.maxSteps: is 0"):
        parse_job(
            json.dumps(job) + "\n" + json.dumps(job).replace('"maxSteps": 5', '"maxSteps": 0'), "job.json"
        )


def test_a_key_of_an_annotation_may_have_capital_letters_in_its_prefix() -> None:
    parse_job(
        GOOD.replace("{name: statue}", "{name: statue, annotations: {Studio.example/By: Ann}}"), "job.yaml"
    )


def test_a_class_prompt_with_the_token_is_warned_of() -> None:
    def hints(prompt: str) -> list[str]:
        training = {"priorPreservation": {"enabled": True, "classPrompt": prompt}}
        return list(find_hints(parse_spec(wire_spec(training=training))))

    token = parse_spec(wire_spec()).concept.token
    assert hints("a photo of a statue") == []
    assert hints(f"a photo of {token}like statues") == []
    [hint] = hints(f"a photo of {token.lower()} statue")
    assert hint.startswith(f"spec.training.priorPreservation.classPrompt: has the token {token}")


def test_a_prompt_whose_end_is_not_read_is_warned_of() -> None:
    long, short = "a photo of a statue" + " on a hill" * 30, "a photo of a statue"
    for training, field in (
        ({"preview": {"prompts": [short, long]}}, "spec.training.preview.prompts[1]"),
        (
            {"priorPreservation": {"enabled": True, "classPrompt": long}},
            "spec.training.priorPreservation.classPrompt",
        ),
    ):
        [hint] = find_hints(parse_spec(wire_spec(training=training)))
        assert hint == f"{field}: has 95 CLIP tokens; what is beyond 75 is not read"
    assert not list(find_hints(parse_spec(wire_spec(training={"preview": {"prompts": [short]}}))))
