"""The report in a browser: from disk, without a network, on a phone and on a desktop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from lora_api.stages import TrainConfig
from lora_trainer.train.report import ReportData, Timing, TrainingImage, render
from tests.support.demo_server import Demo

HOSTILE = (
    """<script>window.harmed = 1</script>"'><img src=x onerror="window.harmed = 2">&lt;b&gt;{{ 7 * 7 }}"""
)
MAX_BYTES = 5 << 20
PAPER_WIDTH = 688
"""Width of A4 paper within the margins, in CSS pixels."""
BROKEN_NUMBERS = """
[...document.querySelectorAll(".settings b")].filter((value) => {
  const range = document.createRange();
  range.selectNodeContents(value);
  const lines = new Set([...range.getClientRects()].map((line) => line.top));
  return /^[0-9.]+$/.test(value.textContent.trim()) && lines.size > 1;
}).map((value) => value.textContent)
"""
"""Expression for the numbers among the settings that continue on another line."""


def assert_whole(page: Page) -> None:
    """Assert that all images have loaded, and that nothing is wider than the screen."""
    missing = page.evaluate(
        "[...document.images].filter(image => !(image.complete && image.naturalWidth)).length"
    )
    assert missing == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(("device", "width", "scheme"), [("phone", 390, "dark"), ("desk", 1440, "light")])
def test_the_report_opens_from_disk_without_a_network(
    browser: Browser, home: Path, screenshots: Path, device: str, width: int, scheme: str
) -> None:
    file = home / "runs/default/quickstart/result/report.html"
    assert file.stat().st_size < MAX_BYTES
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, color_scheme=scheme)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.partition(":")[0]))
    page.goto(file.as_uri())
    # three prompts with and without the adapter, and six photographs
    assert page.locator("img").count() == 2 * 3 + 6
    assert page.locator("svg path").count() > 0
    assert_whole(page)
    assert set(asked) <= {"file", "data"}
    page.screenshot(path=screenshots / f"report-{device}.png")
    page.screenshot(path=screenshots / f"report-{device}-whole.png", full_page=True)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": PAPER_WIDTH, "height": 900})
    assert page.evaluate(BROKEN_NUMBERS) == []
    assert_whole(page)
    context.close()


def test_what_people_and_models_wrote_stays_text(page: Page, demo: Demo, tmp_path: Path) -> None:
    step = next((demo.home / "runs/default/quickstart").glob("quickstart-train-*.json"))
    preview = demo.finished.previews[0].model_copy(update={"prompt": HOSTILE})
    found = demo.store.output.list("default/quickstart/", 100)
    image = next(item.key for item in found if item.key.endswith("images/000.png"))
    fetch: Callable[[str], bytes] = demo.store.output.get
    data = ReportData(
        config=TrainConfig.model_validate_json(step.read_bytes()),
        manifest=demo.finished.model_copy(update={"previews": [preview], "versions": {HOSTILE: HOSTILE}}),
        records=[],
        training_images=[TrainingImage(image, HOSTILE, None)],
        base_previews={},
        captions=None,
        timing=Timing(1, 2, 3),
        device=HOSTILE,
        fetch=fetch,
    )
    file = tmp_path / "report.html"
    file.write_text(render(data))
    page.goto(file.as_uri())
    page.wait_for_timeout(200)
    assert page.evaluate("window.harmed") is None
    assert page.locator("script, [onerror], img[src=x]").count() == 0
    assert page.locator("body").inner_text().count(HOSTILE) >= 4  # a caption, a prompt, a version, a device
