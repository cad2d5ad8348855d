"""Fixtures that several kinds of test share: a real S3 store, photographs, stage configurations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image, ImageDraw

from lora_api.stages import StoreAccess
from lora_cli.local.seaweed import Seaweed
from lora_trainer.store import Store

# Tests run in parallel; one thread each avoids contention.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests must not depend on the settings and keys of the person who runs them.
for name in list(os.environ):
    if name.startswith(("LORA_", "ANTHROPIC_", "OPENAI_", "AWS_", "HF_")) and not name.startswith(
        ("LORA_TEST_", "LORA_SCREENSHOTS")
    ):
        del os.environ[name]

DATA = Path(
    os.environ.get(
        "LORA_TEST_PHOTOGRAPHS", Path(__file__).parents[1] / ".." / "shared" / "data" / "dreambooth"
    )
)
"""A folder of real photographs with the subfolder `dog`, for the tests that can use them."""


@dataclass(frozen=True)
class RunningStore:
    """A store for one test. Buckets are shared, so a test must use its own prefix."""

    access: StoreAccess
    store: Store
    seaweed: Seaweed


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with Seaweed(tmp_path_factory.mktemp("seaweed"), ["datasets", "loras"]) as running:
        yield running


@pytest.fixture
def running_store(seaweed: Seaweed, tmp_path: Path) -> RunningStore:
    folder = tmp_path / "store-secret"
    folder.mkdir()
    (folder / "accessKey").write_text(seaweed.credentials.access_key)
    (folder / "secretKey").write_text(seaweed.credentials.secret_key)
    access = StoreAccess(
        endpoint=seaweed.endpoint,
        secure=False,
        credentials_dir=str(folder),
        input_bucket="datasets",
        output_bucket="loras",
    )
    return RunningStore(access, Store(access), seaweed)


@pytest.fixture
def uid() -> str:
    return str(uuid4())


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five images of one object: real photographs where they are there, drawn ones otherwise."""
    if DATA.is_dir():
        return sorted((DATA / "dog").glob("*.jpg"))[:5]
    folder = tmp_path_factory.mktemp("photographs")
    return [draw_photograph(folder / f"{index:02d}.jpg", index) for index in range(5)]


def draw_photograph(path: Path, index: int, size: int = 512) -> Path:
    """An image of a red ball on a ground. Its place and the ground differ by index."""
    image = Image.effect_mandelbrot((size, size), (-2.0 + index / 10, -1.5, 1.0, 1.5), 50).convert("RGB")
    x, y = ((1, 1), (0, 2), (2, 0), (2, 2), (0, 0))[index % 5]
    left, top = x * size // 4, y * size // 4
    ImageDraw.Draw(image).ellipse((left, top, left + size // 2, top + size // 2), fill=(200, 30, 30))
    image.save(path, quality=90)
    return path


def make_spec(**overrides: Any) -> dict[str, Any]:
    """Return a minimal spec, with fields replaced by wire name."""
    return {
        "dataset": {"prefix": "customers/acme/statue/"},
        "concept": {"token": "CUS", "className": "statue"},
        **overrides,
    }
