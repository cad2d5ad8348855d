"""Every page of the demo, driven in a real browser against a real store."""

from __future__ import annotations

import io
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from lora_api.keys import JobKeys
from lora_api.manifest import sha256_hex
from lora_cli.manifests.writer import dump_yaml
from tests.support.demo_server import Demo, wait_for_page
from tests.support.ports import free_port
from tests.support.quickstart import LORA, QUICKSTART, environment, lora_run

STATE = "dataset.testScriptState"
WITH, WITHOUT = re.compile("^With the adapters? · seed 0:"), re.compile("^Base model · seed 0:")


def pixels_of(image: Locator) -> np.ndarray:
    """Return an image as the browser got it, as an array of height by width by 3."""
    expect(image).to_be_visible()
    source = str(image.evaluate("image => image.src"))
    data = image.page.request.get(source).body()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int16)


def assert_shown(image: Locator) -> None:
    """Assert that the browser has loaded an image."""
    expect(image).to_be_visible()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def generate(page: Page) -> tuple[np.ndarray, np.ndarray]:
    """Generate images with and without the adapters."""
    page.get_by_role("button", name="Generate", exact=True).click()
    page.wait_for_function(f"document.querySelector('[data-testid=stApp]').{STATE} == 'running'")
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    return pixels_of(page.get_by_alt_text(WITH)), pixels_of(page.get_by_alt_text(WITHOUT))


def set_steps(page: Page, steps: int) -> None:
    page.get_by_text("More", exact=True).click()
    box = page.get_by_label("Steps")
    box.fill(str(steps))
    box.press("Enter")
    settle(page)


def expect_alert(page: Page, *words: str) -> None:
    """Expect an alert with these words. For a moment, there are the alert of the last run and that of the new one."""
    alert = page.get_by_role("alert")
    for text in words:
        alert = alert.filter(has_text=text)
    expect(alert.first).to_be_visible()


def settle(page: Page) -> None:
    """Wait until the page has run its script to the end."""
    page.wait_for_timeout(300)
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")


def choose(page: Page, *names: str) -> None:
    """Select exactly the adapters of these jobs."""
    page.get_by_role("button", name="Clear all").click()
    settle(page)
    for name in names:
        page.get_by_role("combobox", name="Adapters").click()
        page.get_by_role("option").filter(has_text=f"default/{name} ").click()
        settle(page)
    page.keyboard.press("Escape")


def open_page(page: Page, demo: Demo, name: str = "Generate") -> None:
    page.goto(demo.url)
    page.get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
    settle(page)


def test_images_with_the_adapter_differ_from_the_base_models(
    page: Page, demo: Demo, screenshots: Path
) -> None:
    open_page(page, demo)
    choose(page, "quickstart")
    page.get_by_label("Prompt", exact=True).fill("on a beach")
    set_steps(page, 3)
    expect(page.get_by_text("a photo of CUS ring, on a beach")).to_be_visible()
    adapted, base = generate(page)
    page.screenshot(path=screenshots / "generate.png")
    assert adapted.shape == base.shape == (64, 64, 3)
    assert np.abs(adapted - base).max() > 0

    page.get_by_role("slider").press("Home")  # strength 0
    settle(page)
    rested, again = generate(page)
    assert (again == base).all()
    assert (rested == base).all()


def test_adapters_are_blended(page: Page, demo: Demo, screenshots: Path) -> None:
    open_page(page, demo)
    choose(page, "loud")
    set_steps(page, 2)
    loud, base = generate(page)
    choose(page, "loud", "quickstart")
    both, base_again = generate(page)
    page.screenshot(path=screenshots / "blend.png")
    assert (base == base_again).all()
    assert np.abs(loud - base).max() > 0
    assert np.abs(both - loud).max() > 0


@pytest.mark.parametrize(
    ("name", "words"),
    [("harmed", "was changed after it was published"), ("lost", "is missing from the store")],
)
def test_a_damaged_adapter_is_named_and_not_loaded(
    page: Page, demo: Demo, screenshots: Path, name: str, words: str
) -> None:
    open_page(page, demo)
    choose(page, name)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect_alert(page, words, f"default/{name}/")
    page.screenshot(path=screenshots / f"{name}.png")
    assert page.get_by_alt_text(WITH).count() == 0


def test_adapters_of_two_base_models_are_not_blended(page: Page, demo: Demo) -> None:
    open_page(page, demo)
    choose(page, "foreign", "quickstart")
    expect_alert(page, "different base models")
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_disabled()


def test_jobs_are_shown_with_their_reports(page: Page, demo: Demo, screenshots: Path) -> None:
    open_page(page, demo, "Jobs")
    assert_shown(page.get_by_alt_text("a photo of a CUS ring on a red background", exact=True))
    page.screenshot(path=screenshots / "jobs.png")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download report").click()
    written = demo.store.output.get(demo.finished.adapter.report_key)
    assert Path(download.value.path()).read_bytes() == written
    page.get_by_role("button", name="Report", exact=True).click()
    report = page.frame_locator("iframe").frame_locator("iframe")
    expect(report.get_by_role("heading", level=1)).to_contain_text("CUS ring")
    for image in report.locator("img").all():
        image.scroll_into_view_if_needed()
        assert_shown(image)
    settle(page)
    page.screenshot(path=screenshots / "jobs-report.png")
    page.get_by_role("button", name="All jobs").click()
    assert_shown(page.get_by_alt_text("a photo of a CUS ring on a red background", exact=True))


def test_captions_are_edited_and_approved(page: Page, demo: Demo, model: Path, screenshots: Path) -> None:
    """A job waits for approval, and continues with the captions that were edited and approved in the page."""
    job = yaml.safe_load((QUICKSTART / "job.yaml").read_text())
    job["metadata"]["name"] = "reviewed"
    file = screenshots / "reviewed.yaml"
    file.write_text(dump_yaml(job))

    def run() -> subprocess.CompletedProcess[str]:
        keys = demo.seaweed.credentials
        return lora_run(
            demo.home,
            model,
            "annotation.approval=Required",
            "training.maxSteps=2",
            job=file,
            endpoint=f"http://{demo.seaweed.endpoint}",
            AWS_ACCESS_KEY_ID=keys.access_key,
            AWS_SECRET_ACCESS_KEY=keys.secret_key,
        )

    waiting = run()
    assert waiting.returncode == 3, waiting.stdout
    uid = yaml.safe_load((demo.home / "runs/default/reviewed/status.yaml").read_text())["metadata"]["uid"]
    keys = JobKeys("default", "reviewed", uid)

    page.wait_for_timeout(10_000)  # the page caches the content of the store for this time
    open_page(page, demo, "Captions")
    page.get_by_role("combobox", name="Job").click()
    page.get_by_role("option").filter(has_text="default/reviewed").click()
    expect(page.get_by_text("This job is waiting for your approval.")).to_be_visible(timeout=60_000)
    for image in page.get_by_role("img").all():
        assert_shown(image)
    box = page.get_by_role("textbox", name="000.png")
    expect(box).to_have_value("a photo of a purple CUS ring on a white background")
    box.fill("a photo of CUS ring above a green field")
    box.press("Control+Enter")
    expect(page.get_by_role("button", name="Approve")).to_be_disabled()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("button", name="Approve")).to_be_enabled()
    page.screenshot(path=screenshots / "captions.png")
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_text("Approved. Start `lora run` again".replace("`", ""))).to_be_visible()
    page.screenshot(path=screenshots / "approved.png")

    data = demo.store.output.get(keys.captions)
    assert b'"a photo of CUS ring above a green field"' in data
    ran = run()
    assert ran.returncode == 0, ran.stdout
    resource = yaml.safe_load((demo.home / "runs/default/reviewed/status.yaml").read_text())
    status = resource["status"]
    assert status["phase"] == "Succeeded"
    assert resource["spec"]["annotation"]["approvedCaptions"].removeprefix("sha256:") == sha256_hex(data)
    report = demo.store.output.get(keys.report(status["training"]["attempt"])).decode()
    assert "a photo of CUS ring above a green field" in report


def test_an_unreachable_store_is_reported_until_it_returns(page: Page, demo: Demo, screenshots: Path) -> None:
    open_page(page, demo, "Captions")
    port = int(demo.seaweed.endpoint.rpartition(":")[2])
    demo.seaweed.stop()
    try:
        page.reload()
        expect_alert(page, demo.seaweed.endpoint)
        page.screenshot(path=screenshots / "store-away.png")
        assert "Traceback" not in page.inner_text("body")
    finally:
        demo.seaweed.start(port)
    page.reload()
    expect(page.get_by_role("textbox", name="000.png")).to_be_visible()


def test_lora_demo_serves_local_runs(page: Page, home: Path, model: Path, tmp_path: Path) -> None:
    """The home is a copy, because another process serves its store."""
    port = free_port()
    (tmp_path / "store").mkdir()
    process = subprocess.Popen([LORA, "demo", "--home", tmp_path, "--port", str(port)], env=environment())
    try:
        wait_for_page(port)
        page.goto(f"http://127.0.0.1:{port}")
        expect(page.get_by_text("There is no finished adapter in the store yet")).to_be_visible()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()


def test_lora_demo_names_a_home_without_a_store(tmp_path: Path) -> None:
    """A page that starts jobs creates the store. A read-only page would stay empty."""
    ended = subprocess.run(
        [LORA, "demo", "--home", tmp_path, "--read-only"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 64
    assert f"{tmp_path} has no local store" in ended.stderr
