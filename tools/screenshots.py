"""Screenshots of the web page for the documentation: from a folder of photographs to a downloaded adapter.

`python -m tools.screenshots` starts `lora demo` on an empty home with the small model, drives it in Chromium, and writes
to docs/img. It takes a few minutes on a CPU. It needs the development requirements and Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.demo_server import serve_home

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "examples/quickstart"
MODEL = ROOT / "examples/shapes-sdxl"
SIZE = {"width": 1280, "height": 800}
TIMEOUT_MS = 60_000
"""Time limit of most actions."""
TRAINING_MS = 30 * 60_000
"""Time limit of actions that train or generate images on a CPU."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs/img", help="where to write the images")
    parser.add_argument("--home", type=Path, help="a home to use and keep; default: a temporary one")
    parser.add_argument(
        "--trained", action="store_true", help="the home has the job: take the other screenshots"
    )
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        home = arguments.home or Path(temporary)
        with serve_home(home, MODEL) as url, sync_playwright() as playwright:
            browser = start_browser(playwright)
            expect.set_options(timeout=TIMEOUT_MS)
            take_screenshots(browser, url, arguments.folder, None if arguments.trained else arguments.steps)
            browser.close()


def start_browser(playwright: Any) -> Browser:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("no chromium or google-chrome on this machine: apt-get install chromium")
    browser: Browser = playwright.chromium.launch(
        executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
    )
    return browser


def take_screenshots(browser: Browser, url: str, folder: Path, steps: int | None) -> None:
    """Take the screenshots: from upload to download, then every page in dark mode and in the size of a phone.

    Args:
        folder: where the images are written.
        steps: training steps; None if the home has the trained job already.
    """
    page = browser.new_page(viewport=SIZE, color_scheme="light")
    page.set_default_timeout(TIMEOUT_MS)
    if steps is not None:
        train(page, url, folder, steps)
    page.goto(url)
    generate(page, folder)
    page.goto(f"{url}/jobs")
    settle(page)
    page.screenshot(path=folder / "jobs.png")
    page.close()
    for name, size, scheme in (
        ("dark", SIZE, "dark"),
        ("phone", {"width": 390, "height": 844}, "light"),
    ):
        page = browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
        page.set_default_timeout(TIMEOUT_MS)
        for path in ("new", "", "jobs", "captions"):
            page.goto(f"{url}/{path}")
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            settle(page)
            page.screenshot(path=folder / f"page-{path or 'generate'}-{name}.png")
        page.close()


def train(page: Page, url: str, folder: Path, steps: int) -> None:
    """Upload photographs, start the job, wait for it, and download the adapter."""
    page.goto(url)
    page.get_by_role("link", name="New job").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload", exact=True).click()
    chooser.value.set_files(sorted((QUICKSTART / "images").iterdir()))
    fill(page, "Token", "CUS")
    fill(page, "Class", "ring")
    settle(page)
    # The small model has its own resolution and rates. SDXL needs no change here.
    page.locator("summary", has_text="Manifest").click()
    fill(page, "Manifest", small_manifest(steps))
    page.locator("summary", has_text="Manifest").click()
    settle(page)
    page.screenshot(path=folder / "way-1-photographs.png")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_text("Training", exact=True)).to_be_visible(timeout=TRAINING_MS)
    expect(page.get_by_text(f"/{steps}")).to_be_visible(timeout=TRAINING_MS)
    page.screenshot(path=folder / "way-2-training.png")
    expect(page.get_by_text("Succeeded", exact=True)).to_be_visible(timeout=TRAINING_MS)
    save = page.get_by_role("button", name="Download for diffusers")
    expect(save).to_be_visible(timeout=TRAINING_MS)
    settle(page)
    page.screenshot(path=folder / "way-3-download.png")
    with page.expect_download() as download:
        save.click()
    assert download.value.suggested_filename.endswith(".safetensors")


def small_manifest(steps: int) -> str:
    job = yaml.safe_load((QUICKSTART / "job.yaml").read_text())
    job["metadata"] = {"name": "cus-ring"}
    job["spec"]["training"]["maxSteps"] = steps
    job["spec"]["dataset"] = {"prefix": "cus-ring/"}
    return yaml.safe_dump(job, sort_keys=False)


def generate(page: Page, folder: Path) -> None:
    settle(page)
    fill(page, "Prompt", "on a red background")
    page.locator("summary", has_text="More").click()
    expect(page.get_by_label("Number of seeds")).to_be_visible()
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_alt_text("Base model · seed 0")).to_be_visible(timeout=TRAINING_MS)
    settle(page)
    page.locator("summary", has_text="Before and after").click()
    page.locator("summary", has_text="More").click()
    page.evaluate("document.querySelector('[data-testid=stMain]').scrollTop = 0")
    settle(page)
    page.screenshot(path=folder / "generate.png")


def fill(page: Page, label: str, text: str) -> None:
    box = page.get_by_label(label, exact=True)
    box.fill(text)
    box.press("Control+Enter")
    settle(page)


def settle(page: Page) -> None:
    """Wait until the page has run its script to the end, and the browser has loaded every widget."""
    page.wait_for_timeout(500)
    expect(page.get_by_test_id("stSkeleton")).to_have_count(0)
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")


if __name__ == "__main__":
    main()
