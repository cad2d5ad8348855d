"""`lora images check` on real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from lora_cli.main import app
from tests.support.segmenter import write_segmenter


@pytest.fixture
def folder(photographs: list[Path], tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in photographs:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def run(*arguments: object):
    return CliRunner().invoke(app, ["images", "check", *map(str, arguments)])


def test_good_images_pass_with_their_coverage(folder):
    result = run(folder, "--resolution", 512)
    assert result.exit_code == 0, result.output
    assert "5 images, 5 different" in result.output
    assert "light: " in result.output


def test_masks_of_a_model_in_a_folder_are_shown(folder, tmp_path):
    pytest.importorskip("torch")
    model = write_segmenter(tmp_path / "clipseg")
    sheets = [tmp_path / "plain.png", tmp_path / "masks.png"]
    assert run(folder, "--resolution", 512, "--sheet", sheets[0]).exit_code == 0
    options = ("--resolution", 512, "--masks", "Model", "--model", model, "--class", "dog")
    result = run(folder, "--sheet", sheets[1], *options)
    assert result.exit_code == 0, result.output
    assert sheets[0].read_bytes() != sheets[1].read_bytes()
    write_segmenter(model, "nothing")
    result = run(folder, *options)
    assert result.exit_code == 1
    assert result.output.count("the segmentation model found no 'dog' in it") == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--masks", "Model"), "--masks Model needs --model and --class"),
        (("--masks", "Model", "--model", "nowhere", "--class", "dog"), "--model: nowhere is not a folder"),
        (("--model", "."), "are for --masks Model"),
        (("--masks", "GrabCut", "--class", "dog"), "are for --masks Model"),
    ],
)
def test_options_of_masks_that_do_not_go_together_are_refused(folder, options, words):
    result = run(folder, *options)
    assert result.exit_code == 64
    assert words in " ".join(result.output.split())


def test_problems_are_named_and_shown(folder, tmp_path):
    first = sorted(folder.iterdir())[0]
    with Image.open(first) as image:
        image.convert("RGB").filter(ImageFilter.GaussianBlur(12)).save(folder / "soft.jpg")
        image.convert("RGB").resize((700, 700)).save(folder / "again.png")
        image.convert("RGB").resize((900, 900)).crop((0, 100, 900, 600)).save(folder / "wide.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (folder / "stray.txt").write_text("words")
    (folder / "IMG.MOV").write_bytes(b"film")
    sheet = tmp_path / "sheet.png"
    result = run(folder, "--sheet", sheet, "--resolution", 512, "-o", "json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    problems = {image["file"]: " ".join(image["problems"]) for image in data["images"]}
    assert "blurred" in problems["soft.jpg"]
    assert any("a copy of" in text for text in problems.values())
    assert {item["file"] for item in data["skipped"]} == {"broken.jpg", "IMG.MOV"}
    assert "stray.txt" in data["warnings"][0]
    crop = next(image["crop"] for image in data["images"] if image["file"] == "wide.png")
    assert crop[2] - crop[0] == pytest.approx(5 / 9, abs=0.001)
    with Image.open(sheet) as image:
        assert image.width == 1600
        assert image.height == 2 * 354
