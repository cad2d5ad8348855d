"""`lora demo`: serve the trainer's web page for the local runs on this machine."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Annotated

import typer
import yaml

from lora_api.profile import Profile

from ..console import say
from ..errors import UsageError, report_errors
from ..options import Put
from ..profiles import DEFAULT_PROFILE_NAME, read_profile
from ..store_access import StoreAddress

GRACE_SECONDS = 5.0
"""Time between SIGTERM and SIGKILL for the page's process."""
POLL_SECONDS = 0.5
PR_SET_PDEATHSIG = 1
"""The option of prctl(2) that sets the signal which a process gets when its parent ends."""


def demo(
    *,
    home: Annotated[
        Path, typer.Option(help="Folder of `lora run` with its runs, models and local store.")
    ] = Path(".lora"),
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the page, on this machine only.")
    ] = 8501,
    profiles: Annotated[
        Path | None,
        typer.Option(help="Profiles file for jobs that are started in the page, as `lora run` reads it."),
    ] = None,
    put: Put = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Start no jobs, and change no captions.")
    ] = False,
) -> None:
    """Open the web page: train, generate with the adapters of local runs, read reports, review captions."""
    with report_errors():
        from .seaweed import is_free
        from .session import LocalStore, put_files
        from .shared_store import shared_store

        if not is_free("127.0.0.1", port):
            raise UsageError(f"port {port} is in use: name another one with --port")
        profile = read_profile(profiles, DEFAULT_PROFILE_NAME)
        if not (home / "store").is_dir():
            if read_only:
                raise UsageError(f"{home} has no local store: `lora run` creates one; name its --home")
            say(f"{home} has no local store yet: a new one is created")
        buckets = [profile.store.input_bucket, profile.store.output_bucket]
        with shared_store(home / "store", buckets) as address, TemporaryDirectory() as folder:
            put_files(LocalStore(address, own=True), buckets[0], put or ())
            say(f"http://127.0.0.1:{port}  (Ctrl-C ends it)")
            page = Page(Path(folder), home.resolve(), port, profile, profiles, read_only)
            raise typer.Exit(_serve(page, address))


@dataclass(frozen=True)
class Page:
    """Where the page runs and what it may do."""

    folder: Path
    """Temporary folder for the profiles file and the store's keys."""
    home: Path
    port: int
    profile: Profile
    profiles: Path | None
    """The profiles file of jobs that are started in the page; None for the default profile."""
    read_only: bool


def _serve(page: Page, address: StoreAddress) -> int:
    """Run the page in a process of the trainer, configured like the demo's pod. Return its exit code.

    Raises:
        SeaweedError: when the store has ended, for example because it was killed.
    """
    folder = page.folder
    store = page.profile.store.model_copy(
        update={"endpoint": address.endpoint, "secure": False, "ca_config_map": ""}
    )
    profile = page.profile.model_copy(update={"store": store})
    document = {"profiles": {DEFAULT_PROFILE_NAME: profile.to_wire()}}
    (folder / "profiles.yaml").write_text(yaml.safe_dump(document))
    (folder / "accessKey").write_text(address.access_key)
    (folder / "secretKey").write_text(address.secret_key)
    run = [sys.executable, "-m", "lora_cli.main", "run", "--home", str(page.home)]
    if page.profiles is not None:
        run += ["--profiles", str(page.profiles.resolve())]
    environment = os.environ | {
        "LORA_PROFILES": str(folder / "profiles.yaml"),
        "LORA_PROFILE": DEFAULT_PROFILE_NAME,
        "LORA_STORE_SECRET": str(folder),
        "LORA_RUNS": str(page.home / "runs"),
        "LORA_CACHE": str(page.home / "cache"),
        "LORA_RUN": json.dumps(run),
        "LORA_UPLOADS": str(page.home / "uploads"),
        "LORA_READ_ONLY": str(page.read_only).lower(),
    }
    options = ["--server.address", "127.0.0.1", "--server.port", str(page.port)]
    command = [sys.executable, "-m", "lora_trainer", "demo", *options]
    # Handle SIGTERM and a closed terminal like Ctrl-C, so that the page's process does not outlive the command.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with subprocess.Popen(command, env=environment, preexec_fn=_end_with_parent) as process:  # noqa: PLW1509 - there are no threads
        try:
            return _wait(process, page.home / "store", address)
        except KeyboardInterrupt:
            _end(process)
            return 0


def _end_with_parent() -> None:
    """Let the kernel end this process with its parent, even if that gets SIGKILL: it would keep the port without a store."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], store: Path, address: StoreAddress) -> int:
    """Wait until the page's process ends, and return its exit code. End it when its store has ended."""
    from .seaweed import SeaweedError
    from .shared_store import require_running

    try:
        while (code := process.poll()) is None:
            require_running(store, address)
            time.sleep(POLL_SECONDS)
    except SeaweedError:
        _end(process)
        raise
    return code


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end(page: subprocess.Popen[bytes]) -> None:
    """End the page's process. It may ignore SIGTERM while it starts; it has no state yet, so it is then killed."""
    page.terminate()
    try:
        page.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        page.kill()
