"""From photographs to a downloaded adapter without a mouse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from safetensors import safe_open

from tests.support.demo_server import serve_home

from .test_follow import STEPS, button, has_trained
from .test_new_job import IMAGES, manifest
from .test_pages import settle

FOCUSED = "document.activeElement.ariaLabel || document.activeElement.innerText"
MAX_TABS = 40
"""More than a page has places that can be focused."""


@pytest.fixture
def url(model: Path, tmp_path: Path) -> Iterator[str]:
    """`lora demo` on an empty home."""
    with serve_home(tmp_path / "home", model) as address:
        yield address


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element of this name has the focus."""
    reached = []
    for _ in range(MAX_TABS):
        page.keyboard.press("Tab")
        reached.append(str(page.evaluate(FOCUSED)).strip().splitlines() or [""])
        if reached[-1][-1].startswith(name):
            return
    pytest.fail(f"Tab does not reach {name}, only {reached}")


def test_the_keyboard_alone_leads_from_photographs_to_an_adapter(page: Page, url: str) -> None:
    page.goto(url)
    settle(page)
    tab_to(page, "New job")
    page.keyboard.press("Enter")
    expect(button(page, "Upload")).to_be_visible()
    settle(page)
    tab_to(page, "Upload")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(IMAGES)
    settle(page)
    for name, text in (("Token", "CUS"), ("Class", "ring")):
        tab_to(page, name)
        page.keyboard.type(text)
        page.keyboard.press("Enter")
        settle(page)
    tab_to(page, "Manifest")  # the heading, which opens the box
    page.keyboard.press("Space")
    box = page.get_by_label("Manifest", exact=True)
    expect(box).to_have_value(re.compile(r"token: CUS\s+className: ring"))
    tab_to(page, "Manifest")
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(manifest(maxSteps=STEPS))
    page.keyboard.press("Control+Enter")
    settle(page)
    tab_to(page, "Train")
    page.keyboard.press("Enter")
    has_trained(page)
    expect(button(page, "Stop")).to_be_visible()
    tab_to(page, "Stop")
    page.keyboard.press("Space")
    expect(button(page, "Resume")).to_be_visible()
    tab_to(page, "Resume")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Download for diffusers")).to_be_visible(timeout=300_000)
    tab_to(page, "Download for diffusers")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    with safe_open(download.value.path(), "pt") as adapter:
        assert list(adapter.keys())
