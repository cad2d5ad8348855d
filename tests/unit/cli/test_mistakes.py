"""What the command says to a person who mistypes, or names the wrong file or folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from typer.testing import CliRunner, Result

from lora_cli.exits import Exit
from lora_cli.main import app
from lora_trainer.annotate.sources import LocalFolder, walk_files
from tests.support.quickstart import LORA, QUICKSTART, environment


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    shutil.copytree(QUICKSTART / "images", tmp_path / "photos")
    return tmp_path / "photos"


def lora(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (["--token", 'back"pack'], ["--token: is", "letters from A to Z, digits, spaces"]),
        (["--class", "ba{ck"], ["--class: is", "letters, digits, spaces"]),
        (["--name", "X_y"], ["--name:", "lower-case letters"]),
        (["--token", ""], ["--token: is"]),
        (["--set", "training.maxStep=3"], ["--set training.maxStep", "did you mean maxSteps?"]),
        (["--set", "baseModel='a\tb'"], ["one line without control characters"]),
    ],
)
def test_a_wrong_option_of_train_is_named(photos: Path, change: list[str], messages: list[str]) -> None:
    """The user has written no manifest, so messages name no line of one."""
    result = lora("train", photos, "--token", "CUS", "--class", "ring", "--print", *change)
    assert result.exit_code == Exit.USAGE
    for message in messages:
        assert message in result.stderr
    assert not any(line.startswith("lora: draft") for line in result.stderr.splitlines())
    assert "^" not in result.stderr, "a regular expression is no message"


@pytest.mark.parametrize(
    "arguments",
    [
        ["images", "check", "photos", "--crop", "Foo"],
        ["images", "check", "photos", "--resolution", "7"],
        ["demo", "--port", "99999"],
        ["demo", "--port", "0"],
        ["train", "photos", "--token", "CUS", "--class", "x", "--steps", "99999999"],
    ],
)
def test_a_value_out_of_range_is_named(
    photos: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(photos.parent)
    result = lora(*arguments)
    assert result.exit_code == Exit.USAGE
    assert arguments[-2] in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--port", "0"], "Invalid value for '--port': it must be greater than or equal to 1"),
        (["images", "check", "x", "--crop", "Foo"], "Invalid value for '--crop': 'Foo' is not one of"),
        (["runs", "-o", "xml"], "Invalid value for '--output' / '-o': 'xml' is not one of 'json', 'yaml'."),
        (["validate"], "Missing argument 'FILE...'."),
        (["lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["--nosuch"], "No such option: --nosuch"),
        (["captions", "pul"], "No such command 'pul'. Did you mean 'pull'?"),
    ],
)
def test_a_wrong_command_line_is_one_line_of_plain_text(arguments: list[str], message: str) -> None:
    """Typer draws a box, wraps it at 80 columns also in a pipe, and shows pydantic's words."""
    result = lora(*arguments)
    assert result.exit_code == Exit.USAGE
    problem, hint = result.stderr.splitlines()
    assert problem.startswith(f"lora: {message}")
    assert hint.endswith("-h` shows the options")


def test_a_command_without_arguments_prints_its_help() -> None:
    result = lora()
    assert result.exit_code == Exit.USAGE
    assert "Usage:" in result.output


@pytest.mark.parametrize("command", ["train", "init"])
def test_a_token_that_is_a_word_is_warned_of(photos: Path, command: str) -> None:
    option = ["--print"] if command == "train" else ["--file", "-"]
    for token, message in (("ring", "is the class itself"), ("photo", "is a common word"), ("CUS", "")):
        result = lora(command, photos, "--token", token, "--class", "ring", *option)
        assert result.exit_code == Exit.OK
        assert (
            result.stderr == ""
            if not message
            else f"lora: warning: --token: {token!r} {message}" in result.stderr
        )


def test_the_format_of_a_printed_manifest_is_chosen(photos: Path) -> None:
    train = ["train", photos, "--token", "CUS", "--class", "ring", "--print"]
    assert json.loads(lora(*train, "-o", "json").stdout) == yaml.safe_load(lora(*train).stdout)


def test_init_writes_to_stdout(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    result = lora("init", photos, "--token", "CUS", "--class", "ring", "-f", "-")
    assert yaml.safe_load(result.stdout)["kind"] == "LoraTrainingJob"
    assert not Path("-").exists()


def test_the_commands_that_init_suggests_can_be_pasted(photos: Path, tmp_path: Path) -> None:
    folder = photos.rename(tmp_path / "Anna's photos")
    file = tmp_path / "a job.yaml"
    result = lora("init", folder, "--token", "CUS", "--class", "ring", "-f", file)
    suggested = [line.split(": ", 1)[1] for line in result.stdout.splitlines() if "it with: " in line]
    assert [shlex.split(command)[2:] for command in suggested] == [[str(file), "--images", str(folder)]] * 2


def test_an_assignment_below_spec_is_explained(photos: Path) -> None:
    result = lora(
        "train", photos, "--token", "CUS", "--class", "x", "--print", "--set", "spec.training.rank=4"
    )
    assert result.exit_code == Exit.USAGE
    assert (
        result.stderr == "lora: --set spec.training.rank=4: leave out 'spec.', fields are looked up there\n"
    )


def test_an_assignment_to_an_unknown_object_is_named() -> None:
    result = lora("validate", QUICKSTART / "job.yaml", "--set", "trainig.lora.rank=4")
    assert result.exit_code == Exit.USAGE
    assert result.stderr == (
        "lora: --set trainig.lora.rank: spec.trainig: is not a field; did you mean training?\n"
    )


@pytest.mark.parametrize("command", [["train"], ["init"], ["images", "check"], ["captions", "check"]])
def test_a_folder_that_does_not_exist_is_named(command: list[str], tmp_path: Path) -> None:
    options = ["--token", "CUS", "--class", "x"] if command[0] in ("train", "init") else []
    result = lora(*command, tmp_path / "absent", *options)
    assert result.exit_code == Exit.USAGE
    assert f"{tmp_path / 'absent'} is not a folder" in result.stderr


@pytest.mark.parametrize("command", [["train"], ["init"], ["images", "check"]])
def test_a_folder_without_images_says_what_to_do(command: list[str], tmp_path: Path) -> None:
    """Local runs have no dataset.prefix to correct."""
    options = ["--token", "CUS", "--class", "x"] if command[0] in ("train", "init") else []
    result = lora(*command, tmp_path, *options)
    assert result.exit_code == Exit.NO_INPUT
    assert f"{tmp_path} has no images: put photographs into it" in result.stderr
    assert "prefix" not in result.stderr


def test_a_folder_with_far_too_many_files_is_refused(tmp_path: Path) -> None:
    for number in range(1001):
        (tmp_path / f"{number}.jpg").touch()
    result = lora("train", tmp_path, "--token", "CUS", "--class", "x")
    assert result.exit_code == Exit.BAD_DATA
    assert "more than 1000 files" in result.stderr


def test_a_file_name_that_is_not_utf8_is_named(photos: Path) -> None:
    """It cannot be the key of an object."""
    shutil.copy(photos / "00.jpg", os.fsencode(photos) + b"/x\xff.jpg")
    result = lora("train", photos, "--token", "CUS", "--class", "x", "--print")
    assert result.exit_code == Exit.BAD_DATA
    assert r"'x\udcff.jpg'" in result.stderr
    assert "rename the file" in result.stderr


def test_a_missing_kubeconfig_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    result = lora("list")
    assert result.exit_code == Exit.USAGE
    assert result.output.count("\n") == 1
    assert f"{tmp_path / 'absent'} does not exist" in result.stderr


USER = "users: [{name: a, user: }]"
DAMAGED = {
    "cut off": b"contexts: [",
    "text": b"hello",
    "empty": b"",
    "bytes": b"\xa7\x00\xff",
    "list": b"- a",
    "no user": f"""\
contexts: [{{name: a, context: {{cluster: a, user: a}}}}]
clusters: [{{name: a, cluster: {{server: 'https://127.0.0.1:9'}}}}]
{USER}
current-context: a
""".encode(),
    "no context": f"contexts: [{{name: a}}]\nclusters: []\n{USER}\ncurrent-context: a\n".encode(),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_kubeconfig_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    file = tmp_path / "config"
    file.write_bytes(content)
    monkeypatch.setenv("KUBECONFIG", str(file))
    result = lora("list")
    assert result.exit_code == Exit.USAGE, result.exception
    assert result.stderr.count("\n") == 1
    assert str(file) in result.stderr


def test_a_closed_stdin_is_named() -> None:
    ran = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -m lora_cli.main validate - <&-', sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (Exit.USAGE, "lora: cannot read stdin: it is closed\n")


def test_the_home_in_the_folder_of_photographs_is_no_photograph(photos: Path) -> None:
    """`lora train .` keeps its home in the folder, as `.lora`."""
    (photos / ".lora/runs/default/x").mkdir(parents=True)
    (photos / ".lora/runs/default/x/preview.png").write_bytes(b"x")
    (photos / "more").mkdir()
    shutil.copy(photos / "00.jpg", photos / "more/00.jpg")
    files = {path.relative_to(photos).as_posix() for path in walk_files(photos)}
    assert "more/00.jpg" in files
    assert not any(name.startswith(".lora") for name in files)
    assert files == {item.key for item in LocalFolder(photos).list("", 1000)}


def test_a_visible_home_in_the_folder_of_photographs_is_refused(photos: Path) -> None:
    result = lora(
        "run", QUICKSTART / "job.yaml", "--images", photos, "--home", photos / "out",
        "--profiles", QUICKSTART / "profiles.yaml",
    )  # fmt: skip
    assert result.exit_code == Exit.USAGE
    assert "lies in the folder of images" in result.stderr
    assert not (photos / "out").exists()


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs another user")
def test_a_folder_that_may_not_be_read_is_named() -> None:
    """The photographs would otherwise be ignored without a message."""
    script = "import sys; from pathlib import Path; from lora_trainer.annotate.sources import walk_files\n"
    script += "for file in walk_files(Path(sys.argv[1])): pass"
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        Path(folder, "closed").mkdir(mode=0o700)
        ran = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", script, folder],
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
    assert f"PermissionError: [Errno 13] Permission denied: '{folder}/closed'" in ran.stderr


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}]
)
def test_names_that_the_locale_cannot_show_are_escaped(tmp_path: Path, locale: dict[str, str]) -> None:
    home = tmp_path / "Ümläute 日本 🎒"
    variables = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **locale}
    ran = subprocess.run(
        [LORA, "runs", "--home", home], env=environment(**variables), capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert b"has no jobs" in ran.stdout


def test_files_are_utf8_in_every_locale(photos: Path) -> None:
    """A job that was written in one locale is read in another, and by the stages."""
    folder = photos.rename(photos.with_name("Föto 日本"))
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = subprocess.run(
        [LORA, "init", "Föto 日本", "--token", "CUS", "--class", "Ümlaut", "-f", "ä.yaml"],
        env=environment(**variables), capture_output=True, check=False, cwd=folder.parent,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    job = yaml.safe_load((folder.parent / "ä.yaml").read_text(encoding="utf-8"))
    assert job["metadata"]["name"] == "foto"
    assert job["spec"]["concept"]["className"] == "Ümlaut"
