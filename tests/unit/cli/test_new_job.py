"""`lora train`, `lora init` and `lora check`: from a folder of photographs, without a written manifest."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageFilter

from lora_api.draft import slug
from lora_api.job import AnnotationMode
from lora_cli.check import Finding, Verdict, check_images
from lora_cli.job_file import parse_job
from lora_cli.local.new_job import NewJob, choose_mode, make_document
from lora_cli.manifests.writer import dump_yaml
from lora_cli.profiles import DEFAULT_PROFILE
from tests.support.quickstart import LORA, QUICKSTART, environment


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "My Backpack (2024)"
    folder.mkdir()
    for index, file in enumerate(sorted((QUICKSTART / "images").glob("*.jpg"))):
        with Image.open(file) as image:
            image.resize((1100, 1100)).rotate(index).save(folder / file.name)
    return folder


def lora(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LORA, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment(**more)
    )


def test_the_manifest_of_a_folder_is_printed_and_valid(photos: Path) -> None:
    ran = lora("train", photos, "--token", "CUS", "--class", "backpack", "--steps", 9, "--print")
    assert ran.returncode == 0, ran.stderr
    [job] = parse_job(ran.stdout, "printed")
    assert job.name == "my-backpack-2024"
    assert (job.spec.concept.token, job.spec.concept.class_name) == ("CUS", "backpack")
    assert (job.spec.training.max_steps, job.spec.annotation.mode) == (9, AnnotationMode.TEMPLATE)
    with_key = lora(
        "train", photos, "--token", "CUS", "--class", "backpack", "--print", ANTHROPIC_API_KEY="x"
    )
    assert yaml.safe_load(with_key.stdout)["spec"]["annotation"]["mode"] == "LLM"


@pytest.mark.parametrize(
    ("recipe", "every"), [("Auto", 200), ("Subject", 200), ("Person", 240), ("Style", 200), ("None", 100)]
)
def test_a_recipe_is_named_in_the_manifest(photos: Path, recipe: str, every: int) -> None:
    ran = lora("train", photos, "--token", "CUS", "--class", "backpack", "--recipe", recipe, "--print")
    assert ran.returncode == 0, ran.stderr
    training = yaml.safe_load(ran.stdout)["spec"]["training"]
    assert training.get("recipe", "None") == recipe
    assert training["preview"]["everySteps"] == every
    assert "maxSteps" not in training


OF_SUBJECT = ("a photo of CUS drawing", "a photo of CUS drawing on a beach at sunset")
OF_STYLE = ("an image in CUS drawing style", "an image in CUS drawing style of a beach at sunset")


@pytest.mark.parametrize(
    ("options", "kind", "prompts"),
    [
        ((), None, OF_SUBJECT),
        (("--recipe", "Auto"), None, OF_SUBJECT),
        (("--recipe", "Person"), "Person", OF_SUBJECT),
        (("--recipe", "Style"), "Style", OF_STYLE),
        (("--recipe", "Auto", "--set", "concept.type=Style"), "Style", OF_STYLE),
        (("--recipe", "Style", "--set", "concept.type=Subject"), "Subject", OF_SUBJECT),
    ],
)
def test_a_recipe_sets_the_type_of_the_concept_and_the_previews(
    photos: Path, options: tuple[str, ...], kind: str | None, prompts: tuple[str, str]
) -> None:
    ran = lora("train", photos, "--token", "CUS", "--class", "drawing", *options, "--print")
    assert ran.returncode == 0, ran.stderr
    spec = yaml.safe_load(ran.stdout)["spec"]
    assert spec["concept"].get("type") == kind
    assert tuple(spec["training"]["preview"]["prompts"]) == prompts


def test_the_values_of_a_recipe_are_shown_before_the_job_runs(photos: Path, tmp_path: Path) -> None:
    file, count = tmp_path / "job.yaml", len(list(photos.glob("*.jpg")))
    arguments = ("--token", "CUS", "--class", "backpack", "--recipe", "Auto", "-f", file)
    assert lora("init", photos, *arguments).returncode == 0
    checked = lora("validate", file)
    assert "recipe Subject sets rank 16, alpha 16, adapter.targets AttentionAndFeedForward" in checked.stdout
    assert "maxSteps 100 per image, 500 to 1500" in checked.stdout
    filled = yaml.safe_load(lora("validate", file, "--set", "training.rank=3", "-o", "yaml").stdout)
    settings = filled["spec"]["training"]
    assert (settings["recipe"], settings["rank"], settings["alpha"]) == ("Subject", 3, 3)
    assert "maxSteps" not in settings
    ready = lora("check", file, "--images", photos, "--gpu", "24GiB")
    assert f"recipe Subject for {count} images sets rank 16" in ready.stdout
    assert f"maxSteps {max(500, 100 * count)}" in ready.stdout
    everything = lora("validate", file, *(f"--set=training.{field}" for field in EXPLICIT))
    assert "recipe Subject sets nothing" in everything.stdout, everything.stderr


EXPLICIT = (
    "rank=4",
    "alpha=4",
    "maxSteps=9",
    "adapter.targets=Attention",
    "lrScheduler=constant",
    "textEncoder.train=false",
)
"""The fields that the recipe of a subject sets."""


def test_captions_beside_the_images_are_used(photos: Path) -> None:
    mode, reason = choose_mode(photos, DEFAULT_PROFILE)
    assert mode == AnnotationMode.TEMPLATE
    assert "a template for every image" in reason
    first, *others = photos.glob("*.jpg")
    first.with_suffix(".txt").write_text("a photo of CUS backpack")
    mode, reason = choose_mode(photos, DEFAULT_PROFILE)
    assert mode == AnnotationMode.TEMPLATE
    assert f"a template for the {len(others)} images without one" in reason
    for image in others:
        image.with_suffix(".txt").write_text("a photo of CUS backpack")
    assert choose_mode(photos, DEFAULT_PROFILE)[0] == AnnotationMode.EXISTING


def test_a_file_is_written_once(photos: Path, tmp_path: Path) -> None:
    arguments = ["init", photos, "--token", "CUS", "--class", "backpack", "-f", tmp_path / "job.yaml"]
    assert lora(*arguments).returncode == 0
    assert lora("validate", tmp_path / "job.yaml").returncode == 0
    assert "--force" in lora(*arguments).stderr
    assert lora(*arguments, "--force").returncode == 0


@pytest.mark.parametrize("text", ["Ünïcode", "...", "a" * 300, "--server=x", "A_b.c", "日本"])
def test_any_folder_has_a_name(text: str, photos: Path) -> None:
    folder = photos.rename(photos.with_name(text[:100]))
    document = make_document(NewJob(folder, "CUS", "backpack"), AnnotationMode.TEMPLATE)
    assert parse_job(dump_yaml(document), "x")
    assert slug(text) == slug(slug(text))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    ran = lora("train", tmp_path, "--token", "CUS", "--class", "backpack")
    assert ran.returncode == 66
    assert "has no images" in ran.stderr


def test_what_is_wrong_with_images_is_found_before_the_run(photos: Path) -> None:
    [job] = parse_job(dump_yaml(make_document(NewJob(photos, "CUS", "x"), AnnotationMode.TEMPLATE)), "x")
    first, second, third, fourth, *_ = sorted(photos.glob("*.jpg"))
    assert {f.verdict for f in check_images(job.spec, photos)} == {Verdict.OK}
    shutil.copy(first, second)
    with Image.open(third) as image:
        image.resize((300, 300)).save(third)
    fourth.write_bytes(fourth.read_bytes()[:2000])
    findings = list(check_images(job.spec, photos))
    messages = [f.message for f in findings if f.verdict != Verdict.OK]
    assert f"{second.name}: a copy of {first.name}" in messages
    assert any(message.startswith(f"{third.name}: ") and "300" in message for message in messages)
    assert any(message.startswith(f"{fourth.name}: ") for message in messages)
    assert findings[-1] == Finding("images", Verdict.FAILED, "4 different images; the job takes 5 to 20")


def test_a_blurred_image_is_warned_of(photos: Path) -> None:
    [job] = parse_job(dump_yaml(make_document(NewJob(photos, "CUS", "x"), AnnotationMode.TEMPLATE)), "x")
    first = min(photos.glob("*.jpg"))
    with Image.open(first) as image:
        image.filter(ImageFilter.GaussianBlur(25)).save(first)
    warned = [f.message for f in check_images(job.spec, photos) if f.verdict == Verdict.WARNING]
    assert warned == [f"{first.name}: blurred"]


def test_the_check_counts_cost_and_missing_keys(photos: Path, tmp_path: Path) -> None:
    model = QUICKSTART.parent / "shapes-sdxl"
    file = tmp_path / "job.yaml"
    lora("init", photos, "--token", "CUS", "--class", "ring", "-f", file, ANTHROPIC_API_KEY="x")
    options = [
        "check", file, "--images", photos, "--model", model, "--gpu", "L4", "--gpu-hour-usd", 2,
        "--home", tmp_path, "-o", "json", "--set", "training.resolution=64",
    ]  # fmt: skip
    ran = lora(*options)
    assert ran.returncode == 1, ran.stderr
    found = {finding["name"]: finding for finding in json.loads(ran.stdout)["findings"]}
    assert "ANTHROPIC_API_KEY is not set" in found["key"]["message"]
    assert "0.0020 USD for 6 images" in found["captions"]["message"]  # 6 x (2500 x 0.10 + 150 x 0.50) / 10**6
    assert "limit is 1 USD" in found["captions"]["message"]  # that of a job that names none
    assert "USD" in found["time"]["message"]
    assert "on L4" in found["gpu"]["message"]


def test_the_check_names_a_missing_segmentation_model_and_where_its_masks_are_shown(
    photos: Path, tmp_path: Path
) -> None:
    model, file, profiles = QUICKSTART.parent / "shapes-sdxl", tmp_path / "job.yaml", tmp_path / "p.yaml"
    lora("init", photos, "--token", "CUS", "--class", "tea pot", "-f", file, ANTHROPIC_API_KEY="x")
    options = [
        "check", file, "--images", photos, "--model", model, "--gpu", "L4", "--home", tmp_path, "-o", "json",
        "--set", "training.resolution=64", "--set", "annotation.masks=Model",
    ]  # fmt: skip

    def findings(*more: object) -> dict[str, dict[str, str]]:
        ran = lora(*options, *more, ANTHROPIC_API_KEY="x")
        return {finding["name"]: finding for finding in json.loads(ran.stdout)["findings"]}

    without = findings()
    assert without["profile"]["verdict"] == "failed"
    assert "spec.annotation.masks" in without["profile"]["message"]
    named = {
        **DEFAULT_PROFILE.to_wire(),
        "segmentation": {"source": "hub", "repo": "CIDAS/clipseg-rd64-refined"},
    }
    profiles.write_text(yaml.safe_dump({"profiles": {"default": named}}))
    found = findings("--profiles", profiles)
    assert found["profile"]["verdict"] == "ok"
    assert "--masks Model --model MODEL --class 'tea pot'" in found["masks"]["message"]
