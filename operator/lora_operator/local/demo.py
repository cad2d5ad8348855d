"""The command `lora demo`: the trainer's web page on what `lora run` left on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
import yaml

from lora_api.profile import Profile

from .command import DEFAULT_PROFILE
from .seaweed import Seaweed, SeaweedError

GRACE_SECONDS = 5.0


def demo(
    *,
    home: Annotated[
        Path, typer.Option(help="Where `lora run` kept its runs, models and local store.")
    ] = Path(".lora"),
    port: Annotated[int, typer.Option(help="Of the page, on this machine only.")] = 8501,
) -> None:
    """Draw with the adapters of local runs, look at their reports, review captions, in the browser."""
    if not (home / "store").is_dir():
        typer.echo(f"{home} holds no local store: `lora run` makes one; name its --home", err=True)
        raise typer.Exit(64)
    buckets = [DEFAULT_PROFILE.store.input_bucket, DEFAULT_PROFILE.store.output_bucket]
    try:
        with Seaweed(home / "store", buckets) as seaweed, TemporaryDirectory() as folder:
            typer.echo(f"http://127.0.0.1:{port}  (Ctrl-C ends it)")
            raise typer.Exit(_serve(seaweed, Path(folder), home.resolve(), port))
    except SeaweedError as error:
        typer.echo(f"lora: {error}", err=True)
        raise typer.Exit(64) from None


def _serve(seaweed: Seaweed, folder: Path, home: Path, port: int) -> int:
    """Run the page as the trainer's process, which is told of the store as a pod would be."""
    store = DEFAULT_PROFILE.store.model_copy(update={"endpoint": seaweed.endpoint, "secure": False})
    profile: Profile = DEFAULT_PROFILE.model_copy(update={"store": store})
    (folder / "profiles.yaml").write_text(yaml.safe_dump({"profiles": {"default": profile.to_wire()}}))
    (folder / "accessKey").write_text(seaweed.credentials.access_key)
    (folder / "secretKey").write_text(seaweed.credentials.secret_key)
    environment = os.environ | {
        "LORA_PROFILES": str(folder / "profiles.yaml"),
        "LORA_PROFILE": "default",
        "LORA_STORE_SECRET": str(folder),
        "LORA_RUNS": str(home / "runs"),
        "LORA_CACHE": str(home / "cache"),
    }
    options = ["--server.address", "127.0.0.1", "--server.port", str(port)]
    command = [sys.executable, "-m", "lora_trainer", "demo", *options]
    with subprocess.Popen(command, env=environment) as page:
        try:
            return page.wait()
        except KeyboardInterrupt:
            _end(page)
            return 0


def _end(page: subprocess.Popen[bytes]) -> None:
    """A page that is told to end while it starts may not hear it; it has nothing to lose."""
    page.terminate()
    try:
        page.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        page.kill()
