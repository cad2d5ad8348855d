"""Features of the page: strengths and seeds, all jobs, downloads, approval."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from filelock import FileLock
from playwright.sync_api import Browser, Page, expect

from lora_api.keys import JobKeys
from lora_api.manifest import sha256_hex
from tests.support.demo_server import Demo, new_context, serve

from .test_pages import assert_shown, choose, expect_alert, open_page, pixels_of, set_steps, settle

STEPS = ("· step 4 · ", r"#\d · ")
"""Labels of the row of a checkpoint, and of the published adapter."""


def test_a_grid_has_an_image_for_each_strength_and_seed(page: Page, demo: Demo, screenshots: Path) -> None:
    open_page(page, demo)
    choose(page, "quickstart")
    page.get_by_text("Grid of strengths", exact=True).click()
    settle(page)
    set_steps(page, 1)
    seeds = page.get_by_label("Number of seeds")
    seeds.fill("2")
    seeds.press("Enter")
    settle(page)
    page.get_by_role("button", name="Generate", exact=True).click()
    for seed in (0, 1):
        for strength in ("0", "0.5", "1", "1.5"):
            row = page.get_by_alt_text(f"strength {strength} · seed {seed}:")
            expect(row).to_have_count(2)  # the checkpoint before the last step, and the published adapter
            assert_shown(row.first)
            assert_shown(row.last)
        checkpoint, published = (
            pixels_of(page.get_by_alt_text(re.compile(f"{step}strength 1 · seed {seed}:"))) for step in STEPS
        )
        assert np.abs(checkpoint - published).max() > 0
    none = [pixels_of(page.get_by_alt_text(re.compile(f"{step}strength 0 · seed 0:"))) for step in STEPS]
    assert (none[0] == none[1]).all()
    page.screenshot(path=screenshots / "grid.png")


def test_a_prompt_that_is_too_long_shows_what_is_ignored(page: Page, demo: Demo) -> None:
    open_page(page, demo)
    box = page.get_by_label("Prompt", exact=True)
    box.fill("on a beach, " * 30 + "with a zebra")
    box.press("Control+Enter")
    expect_alert(page, "The model reads 75", "with a zebra")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_narrow_dark_and_local(
    browser: Browser, demo: Demo, screenshots: Path, scheme: str
) -> None:
    """It follows the system's color scheme, fits a phone, and requests nothing from other hosts."""
    context = new_context(browser, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(request.url))
    for path, name in (("", "generate"), ("jobs", "jobs"), ("captions", "captions")):
        page.goto(f"{demo.url}/{path}")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.screenshot(path=screenshots / f"{name}-{scheme}.png")
    background = page.evaluate(
        "getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
    )
    brightness = sum(int(part) for part in background.strip("rgb()").split(",")[:3])
    assert (brightness < 200) == (scheme == "dark")
    foreign = {
        url
        for url in hosts
        if not url.startswith((demo.url, demo.url.replace("http", "ws"), "data:", "blob:"))
    }
    assert foreign == set()
    context.close()


def write_run(runs: Path, name: str, uid: str, phase: str, reason: str, message: str) -> None:
    job = yaml.safe_load((Path(__file__).parents[3] / "examples/quickstart/job.yaml").read_text())
    job["metadata"] |= {"name": name, "uid": uid}
    condition = {
        "type": "Succeeded",
        "status": "Unknown" if phase == "Queued" else "False",
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-03-01T12:00:00Z",
    }
    job["status"] = {"phase": phase, "conditions": [condition]}
    folder = runs / "default" / name
    folder.mkdir(parents=True)
    (folder / "status.yaml").write_text(yaml.safe_dump(job))


def test_jobs_are_shown_in_every_phase_with_reasons_and_downloads(
    page: Page, demo: Demo, screenshots: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(Path(demo.settings["LORA_RUNS"]), runs)
    write_run(runs, "waiting", "uid-1", "Queued", "Unschedulable", "no node has a free GPU")
    write_run(runs, "broken", "uid-2", "Failed", "OutOfMemory", "the pod exceeded 16 GiB")
    write_run(runs, "killed", "uid-3", "Training", "Training", "attempt 1")
    (runs / "default/killed/lock").touch()
    with FileLock(runs / "default/waiting/lock"), serve({**demo.settings, "LORA_RUNS": str(runs)}) as url:
        page.goto(f"{url}/jobs")
        expect(page.get_by_text("Its process was killed. Run the same command again")).to_be_visible()
        expect(page.get_by_text("Unschedulable: no node has a free GPU")).to_be_visible()
        expect(page.get_by_text("OutOfMemory: the pod exceeded 16 GiB")).to_be_visible()
        for phase in ("Queued", "Failed", "Succeeded", "Interrupted"):
            expect(page.get_by_text(phase, exact=True).first).to_be_visible()
        settle(page)
        page.screenshot(path=screenshots / "jobs.png", full_page=True)
        adapter = demo.finished.adapter
        with page.expect_download() as download:
            # Streamlit puts the key of a widget, here the object key, into its class.
            page.locator("[class*=default-quickstart][class*=adapter-safetensors] button").first.click()
        assert sha256_hex(Path(download.value.path()).read_bytes()) == adapter.sha256


def test_many_jobs_are_searched(page: Page, demo: Demo, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    names = [f"job-{number:03}" for number in range(150)] + ["z" * 250]
    for number, name in enumerate(names):
        write_run(runs, name, f"uid-{number}", "Failed", "DatasetInvalid", "שלום 🎒.jpg: " + "x" * 300)
    with serve({**demo.settings, "LORA_RUNS": str(runs)}) as url:
        page.goto(f"{url}/jobs")
        expect(page.get_by_text(re.compile("60 of 15. jobs are shown"))).to_be_visible()
        box = page.get_by_label("Search")
        box.fill("JOB-007 failed")
        box.press("Enter")
        expect(page.get_by_text(re.compile("1 of 15. jobs are shown"))).to_be_visible()
        expect(page.get_by_role("heading", name="job-007")).to_be_visible()
        box.fill("zzz")
        box.press("Enter")
        expect(page.get_by_role("heading", name="z" * 250)).to_be_visible()
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_running_job_is_followed_to_its_end(page: Page, demo: Demo, tmp_path: Path) -> None:
    """The page is not reloaded."""
    runs = tmp_path / "runs"
    write_run(runs, "running", "uid-1", "Queued", "Queued", "waiting for the process to start")
    with FileLock(runs / "default/running/lock"), serve({**demo.settings, "LORA_RUNS": str(runs)}) as url:
        page.goto(f"{url}/jobs")
        expect(page.get_by_text("waiting for the process to start")).to_be_visible()
        shutil.rmtree(runs / "default/running")
        write_run(runs, "running", "uid-1", "Failed", "OutOfMemory", "it exceeded 16 GiB")
        expect(page.get_by_text("OutOfMemory: it exceeded 16 GiB")).to_be_visible()


def test_captions_without_the_trigger_are_approved_only_after_a_question(
    page: Page, demo: Demo, screenshots: Path, tmp_path: Path
) -> None:
    runs, keys = tmp_path / "runs", JobKeys("default", "untriggered", "uid-3")
    write_run(runs, keys.name, keys.uid, "AwaitingApproval", "AwaitingApproval", "captions wait")
    source = next(
        i.key for i in demo.store.output.list("default/quickstart/", 100) if i.key.endswith("/000.png")
    )
    demo.store.output.put(keys.image(0), demo.store.output.get(source))
    row = json.dumps({"file_name": "000.png", "text": "a photo of a ring"}) + "\n"
    demo.store.output.put(keys.captions, row.encode())
    with serve({**demo.settings, "LORA_RUNS": str(runs)}) as url:
        page.goto(f"{url}/captions")
        page.get_by_role("combobox", name="Job").click()
        page.get_by_role("option").filter(has_text="default/untriggered").click()
        expect(page.get_by_text("it does not name")).to_be_visible()
        settle(page)
        page.get_by_role("button", name="Approve", exact=True).click()
        expect(page.get_by_text("do not contain the token")).to_be_visible()
        page.screenshot(path=screenshots / "untriggered.png")
        status = runs / "default/untriggered/status.yaml"
        assert "approvedCaptions" not in status.read_text()
        page.get_by_role("button", name="Approve without the token").click()
        expect(page.get_by_text("Approved.")).to_be_visible()
        assert sha256_hex(row.encode()) in status.read_text()
    for item in demo.store.output.list(keys.root, 100):
        demo.store.output.remove(item.key)
