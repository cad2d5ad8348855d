"""The demo as a process with a store, for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from playwright.sync_api import Browser, BrowserContext, Route
from playwright.sync_api import Error as PlaywrightError
from safetensors.numpy import load, save

from lora_api.keys import JobKeys
from lora_api.manifest import FileEntry, Manifest
from lora_cli.local.seaweed import Seaweed
from lora_trainer.store import Store
from tests.support.ports import free_port
from tests.support.quickstart import LORA, QUICKSTART, environment

START_SECONDS = 90


@dataclass(frozen=True)
class Demo:
    """A running demo and its store."""

    url: str
    home: Path
    store: Store
    seaweed: Seaweed
    finished: Manifest
    """Manifest of the quickstart's job."""
    settings: Mapping[str, str]
    """Environment variables of the page."""


@contextmanager
def serve(settings: Mapping[str, str]) -> Iterator[str]:
    """Run the demo as a pod does, configured by environment variables; yield its URL."""
    port = free_port()
    options = ["--server.address", "127.0.0.1", "--server.port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_trainer", "demo", *options], env={**os.environ, **settings}
    )
    try:
        wait_for_page(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def serve_home(home: Path, model: Path) -> Iterator[str]:
    """Run `lora demo` on a home, with the quickstart's profiles and a base model; yield its URL."""
    port = free_port()
    command = [LORA, "demo", "--home", str(home), "--port", str(port)]
    command += ["--profiles", str(QUICKSTART / "profiles.yaml"), "--put", f"{model}:models/shapes-sdxl"]
    process = subprocess.Popen(command, env=environment())
    try:
        wait_for_page(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def new_context(browser: Browser, **options: Any) -> BrowserContext:
    """Open a context in which changes of the machine's network do not matter.

    Chromium ends its requests with ERR_NETWORK_CHANGED when the network changes, on loopback too, and a page without
    one of its scripts stays empty. The cluster's tests change it with each pod. So Playwright requests the scripts.
    """
    context = browser.new_context(**options)
    context.route("**/static/**", _answer)
    return context


def _answer(route: Route) -> None:
    try:
        # retried: the server may have closed a connection that is used again
        route.fulfill(response=route.fetch(max_retries=5))
    except PlaywrightError:
        with suppress(PlaywrightError):  # the page may have been closed
            route.abort()


def wait_for_page(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5) as answer:
                assert answer.status == 200
                return
        except URLError:
            assert time.monotonic() < deadline, "the demo did not start"
            time.sleep(0.1)


def publish_another(store: Store, original: Manifest, name: str, factor: float, **changed: Any) -> FileEntry:
    """Publish the adapter of another LoraTrainingJob: the original with scaled weights. Return its file.

    Args:
        changed: fields of the manifest to override.
    """
    entry = next(entry for entry in original.files if entry.sha256 == original.adapter.sha256)
    weights = load(store.output.get(entry.key))
    data = save({key: value * factor for key, value in weights.items()}, metadata={"format": "pt"})
    keys = JobKeys(original.namespace, name, f"{name}-uid")
    stored = store.output.put(f"{keys.attempt(1)}adapter.safetensors", data)
    adapter = original.adapter.model_copy(
        update={
            "uri": store.output.uri(stored.key),
            "sha256": stored.sha256,
            "bytes": stored.bytes,
            "manifest_key": keys.manifest(1),
            "report_key": "",
        }
    )
    fields = {"name": name, "uid": keys.uid, "adapter": adapter, "files": [stored], "previews": [], **changed}
    manifest = original.model_copy(update=fields)
    store.output.put(keys.manifest(1), json.dumps(manifest.to_wire()).encode())
    return stored
