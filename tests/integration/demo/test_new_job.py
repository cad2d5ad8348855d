"""A new job in the browser: from photographs to a downloaded adapter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Page, expect
from safetensors import safe_open

from tests.support.demo_server import Demo, serve, serve_home
from tests.support.quickstart import QUICKSTART, SMALL

from .test_pages import expect_alert, settle

IMAGES = sorted((QUICKSTART / "images").iterdir())


@pytest.fixture
def own_demo(model: Path, tmp_path: Path) -> Iterator[str]:
    """`lora demo` on an empty home."""
    with serve_home(tmp_path / "home", model) as url:
        yield url


def manifest(**training: int) -> str:
    """The quickstart's job in a few steps, as a user writes it into the page."""
    job = yaml.safe_load((QUICKSTART / "job.yaml").read_text())
    job["metadata"] = {"name": "from-browser"}
    for setting in SMALL:
        path, _, value = setting.removeprefix("training.").partition("=")
        target = job["spec"]["training"]
        *parents, last = path.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = int(value)
    job["spec"]["training"] |= training
    return yaml.safe_dump(job, sort_keys=False)


def fill(page: Page, label: str, text: str) -> None:
    box = page.get_by_label(label, exact=True)
    box.fill(text)
    box.press("Control+Enter")
    settle(page)


def prepare(page: Page, url: str) -> None:
    """Upload the photographs, and name the token and the class."""
    page.goto(f"{url}/new")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload", exact=True).click()
    chooser.value.set_files(IMAGES)
    fill(page, "Token", "CUS")
    fill(page, "Class", "ring")
    page.locator("summary", has_text="Manifest").click()
    # The draft replaces what is written into the box, until it has the last answer.
    draft = page.get_by_label("Manifest", exact=True)
    expect(draft).to_have_value(re.compile(r"token: CUS\s+className: ring"))


def test_photographs_become_a_downloaded_adapter(
    page: Page, own_demo: str, screenshots: Path, tmp_path: Path
) -> None:
    requested: set[str] = set()
    page.on("request", lambda request: requested.add(request.url))
    prepare(page, own_demo)
    # The draft names the captions that were uploaded beside the photographs, once the last file has arrived.
    draft = page.get_by_label("Manifest", exact=True)
    expect(draft).to_have_value(re.compile(r"name: cus-ring\n(.|\n)*mode: Existing"), timeout=30_000)
    fill(page, "Manifest", manifest(rank=0))
    page.get_by_role("button", name="Train", exact=True).click()
    expect_alert(page, "rank")
    fill(page, "Manifest", manifest())
    page.get_by_role("button", name="Train", exact=True).click()
    save = page.get_by_role("button", name="Download for diffusers")
    expect(save).to_be_visible(timeout=300_000)
    page.screenshot(path=screenshots / "new-job.png")
    with page.expect_download() as download:
        save.click()
    with safe_open(download.value.path(), "pt") as adapter:
        assert list(adapter.keys())
    status = yaml.safe_load((tmp_path / "home/runs/default/from-browser/status.yaml").read_text())
    assert status["status"]["phase"] == "Succeeded"
    assert status["status"]["dataset"]["images"] == len([file for file in IMAGES if file.suffix == ".jpg"])
    page.get_by_role("link", name="Jobs").click()
    expect(page.get_by_text("default/from-browser")).to_be_visible()
    own = (own_demo, own_demo.replace("http", "ws"), "data:", "blob:")
    assert {url for url in requested if not url.startswith(own)} == set()


def test_the_draft_has_the_chosen_recipe(page: Page, own_demo: str) -> None:
    prepare(page, own_demo)
    page.locator("summary", has_text="Settings").click()
    settle(page)
    page.get_by_role("combobox", name="Recipe", exact=True).click()
    page.get_by_role("option").filter(has_text="For a person").click()
    # The steps of the recipe decide how often previews are generated. For a moment, there are the old and the new box.
    draft = page.get_by_label("Manifest", exact=True).first
    expect(draft).to_have_value(re.compile(r"recipe: Person\n(.|\n)*everySteps: 240"))


def test_a_token_that_is_a_word_is_warned_of(page: Page, own_demo: str) -> None:
    page.goto(f"{own_demo}/new")
    fill(page, "Token", "ring")
    fill(page, "Class", "ring")
    expect_alert(page, "is the class itself")
    fill(page, "Token", "photo")
    expect_alert(page, "is a common word")
    fill(page, "Token", "CUS")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_text_file_with_an_images_name_is_reported(page: Page, own_demo: str, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("not an image")
    page.goto(f"{own_demo}/new")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload", exact=True).click()
    chooser.value.set_files([*IMAGES, tmp_path / "notes.jpg"])
    expect_alert(page, "Not images", "notes.jpg")


def test_a_job_that_cannot_start_shows_the_reason(page: Page, own_demo: str) -> None:
    prepare(page, own_demo)
    job = yaml.safe_load(manifest())
    job["spec"]["resources"]["train"]["gpus"] = 4
    fill(page, "Manifest", yaml.safe_dump(job))
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_text("The job could not be run:")).to_be_visible()
    expect(page.get_by_text("PyTorch can use no GPU on this machine")).to_be_visible()


def test_a_read_only_page_offers_no_new_job(page: Page, demo: Demo, tmp_path: Path) -> None:
    start = {"LORA_RUN": '["false"]', "LORA_UPLOADS": str(tmp_path), "LORA_READ_ONLY": "true"}
    with serve({**demo.settings, **start}) as url:
        page.goto(f"{url}/jobs")
        expect(page.get_by_role("link", name="Captions")).to_be_visible()
        assert page.get_by_role("link", name="New job").count() == 0
