"""A job that is followed in the browser: stopped, resumed, in two tabs, and after a reload."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from safetensors import safe_open

from tests.support.demo_server import serve_home
from tests.support.quickstart import status_of

from .test_new_job import fill, manifest, prepare
from .test_pages import expect_alert, settle

STEPS = 40
"""Enough for a stop before the end."""
JOB = "from-browser"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def url(model: Path, home: Path) -> Iterator[str]:
    """`lora demo` on an empty home."""
    with serve_home(home, model) as address:
        yield address


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def has_trained(page: Page) -> None:
    expect(page.get_by_text(re.compile(rf"[1-9]\d*/{STEPS}"))).to_be_visible(timeout=300_000)


def test_a_stopped_job_is_resumed_after_a_reload_and_in_two_tabs(page: Page, url: str, home: Path) -> None:
    prepare(page, url)
    fill(page, "Manifest", manifest(maxSteps=STEPS))
    button(page, "Train").click()
    has_trained(page)
    second = page.context.new_page()
    second.goto(f"{url}/new")
    has_trained(second)
    button(page, "Stop").click()
    # The place of the button holds none that could be hit by a second click. The other tab is refreshed after some
    # seconds, in which the job may have ended.
    expect(button(page, "Stopping")).to_be_disabled()
    expect(button(second, "Stop")).to_have_count(0)
    expect(button(page, "Resume")).to_be_visible()
    expect(button(second, "Resume")).to_be_visible()
    assert status_of(home, JOB)["phase"] == "Suspended"
    page.reload()
    button(page, "Resume").click()
    expect(button(page, "Starting")).to_be_disabled()
    expect(page.get_by_text("Stopped. Resume it")).to_have_count(0)
    # The other tab may still show the old button.
    expect(button(second, "Stop")).to_be_visible()
    expect(button(page, "Download for diffusers")).to_have_count(0)
    save = page.get_by_role("button", name="Download for diffusers")
    expect(save).to_be_visible(timeout=300_000)
    with page.expect_download() as download:
        save.click()
    with safe_open(download.value.path(), "pt") as adapter:
        assert list(adapter.keys())
    expect(second.get_by_role("button", name="Download for diffusers")).to_be_visible()
    assert status_of(home, JOB)["training"]["attempt"] == 2


def test_back_leads_to_the_page_before(page: Page, url: str, home: Path) -> None:
    """The page New job, which names the job that was started last, makes one step of the history."""
    folder = home / "uploads/default/earlier"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text("{}")
    page.goto(f"{url}/jobs")
    settle(page)
    page.get_by_role("link", name="New job").click()
    expect(page.get_by_role("heading", name="earlier")).to_be_visible()
    settle(page)
    page.go_back()
    expect(page.get_by_role("heading", name="Jobs", level=1)).to_be_visible()
    page.go_forward()
    expect(page.get_by_role("heading", name="earlier")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="earlier")).to_be_visible()


def test_too_many_photographs_are_reported_before_the_start(page: Page, url: str, tmp_path: Path) -> None:
    (folder := tmp_path / "photos").mkdir()
    for number in range(40):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"{number}.png")
    page.goto(f"{url}/new")
    with page.expect_file_chooser() as chooser:
        button(page, "Upload").click()
    chooser.value.set_files(sorted(folder.iterdir()))
    fill(page, "Token", "CUS")
    fill(page, "Class", "ring")
    expect_alert(page, "40 photographs, and the job takes 5 to 20: remove 20")
    settle(page)
    expect(button(page, "Train")).to_be_disabled()
    page.locator("summary", has_text="Manifest").click()
    draft = page.get_by_label("Manifest", exact=True)
    expect(draft).to_have_value(re.compile(r"token: CUS\s+className: ring"))
    fill(page, "Manifest", draft.input_value().replace("dataset:\n", "dataset:\n    maxImages: 40\n"))
    expect_alert(page, "5 to 20 give the best result")
    expect(button(page, "Train")).to_be_enabled()
