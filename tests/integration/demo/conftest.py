"""Fixtures: a finished job, a store that can be stopped, the demo that uses it, and a browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from playwright.sync_api import Browser, Page, expect, sync_playwright

from lora_api.manifest import Manifest
from lora_api.profile import StoreModel
from lora_api.stages import StoreAccess
from lora_cli.local.seaweed import Seaweed
from lora_cli.local.shared_store import SERVER
from lora_cli.profiles import DEFAULT_PROFILE
from lora_trainer.store import Store
from tests.support.demo_server import Demo, new_context, publish_another, serve
from tests.support.quickstart import QUICKSTART, lora_run, write_tiny_model

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
TIMEOUT_MS = 90_000
"""Time limit of a step in the browser, for a busy machine."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The scope is a module, because Playwright's event loop runs in this thread and other tests could not use asyncio."""
    if CHROMIUM is None:
        pytest.skip("no chromium or google-chrome on this machine: apt-get install chromium")
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = new_context(browser, viewport={"width": 1440, "height": 900})
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    # pytest shows what is printed of a test that failed
    page.on("console", lambda message: print("console:", message.text))
    page.on("pageerror", lambda error: print("page error:", error))
    page.on("requestfailed", lambda request: print("request failed:", request.url, request.failure))
    page.on("websocket", lambda socket: socket.on("close", lambda _: print("socket closed:", socket.url)))
    yield page
    print("page at the end:", page.url, page.locator("body").inner_text()[:2000])
    context.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of screenshots: LORA_SCREENSHOTS, or a temporary one."""
    folder = Path(os.environ.get("LORA_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny-sdxl")


@pytest.fixture(scope="session")
def home(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home after `lora run` of a job."""
    folder = tmp_path_factory.mktemp("home")
    ran = lora_run(folder, model)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


@pytest.fixture(scope="session")
def demo(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Run the page as in a pod, with a profile and the files of a Secret."""
    folder = tmp_path_factory.mktemp("demo")
    buckets = [DEFAULT_PROFILE.store.input_bucket, DEFAULT_PROFILE.store.output_bucket]
    with FileLock(home / "store" / SERVER, timeout=60):
        pass  # the store of `lora run` ends after its command
    with Seaweed(home / "store", buckets) as seaweed:
        profile = yaml.safe_load((QUICKSTART / "profiles.yaml").read_text())["profiles"]["default"]
        profile["store"] = {"endpoint": seaweed.endpoint, "secure": False}
        (folder / "profiles.yaml").write_text(yaml.safe_dump({"profiles": {"default": profile}}))
        (folder / "accessKey").write_text(seaweed.credentials.access_key)
        (folder / "secretKey").write_text(seaweed.credentials.secret_key)
        access = StoreAccess(
            endpoint=seaweed.endpoint,
            secure=False,
            credentials_dir=str(folder),
            input_bucket=buckets[0],
            output_bucket=buckets[1],
        )
        settings = {
            "LORA_PROFILES": str(folder / "profiles.yaml"),
            "LORA_STORE_SECRET": str(folder),
            "LORA_RUNS": str(home / "runs"),
            "LORA_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        store = Store(access)
        finished = publish_more(store)
        with serve(settings) as url:
            yield Demo(url, home, store, seaweed, finished, settings)


def publish_more(store: Store) -> Manifest:
    """Publish more adapters: one with a strong effect, two damaged ones, and one of another base model."""
    found = store.output.list("default/quickstart/", 1000)
    key = next(item.key for item in found if item.key.endswith("attempt-1/manifest.json"))
    finished = Manifest.model_validate_json(store.output.get(key))
    publish_another(store, finished, "loud", 40.0)
    harmed = publish_another(store, finished, "harmed", 2.0)
    store.output.put(harmed.key, bytes(harmed.bytes))
    store.output.remove(publish_another(store, finished, "lost", 3.0).key)
    publish_another(
        store, finished, "foreign", 4.0, base_model=StoreModel(source="store", key="models/another/")
    )
    return finished
