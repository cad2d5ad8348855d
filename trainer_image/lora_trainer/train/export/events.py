"""TensorBoard event files with the losses, learning rate, gradient norm and previews of a training."""

from __future__ import annotations

import io
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lora_api.status import PreviewStatus

from ..records import Record

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

FILE_NAME = "events.out.tfevents.training"
"""Name of the event file. TensorBoard reads files whose names contain `tfevents`."""
SCALARS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "gradient_norm": "train/gradient_norm",
}
"""TensorBoard tags by field of `Record`."""
HELD_OUT = "validation/loss"
NO_TAG = r"[^-/\w.]+"
"""Characters that TensorBoard does not allow in tags."""


def write_events(
    path: Path,
    records: Sequence[Record],
    previews: Sequence[PreviewStatus],
    fetch: Callable[[str], bytes | None],
) -> None:
    """Write one event file. Values that are not finite are omitted.

    Args:
        fetch: returns the content of a key in the output bucket, or None if there is none.
    """
    from tensorboardX import SummaryWriter  # not before training, whose peak would include its memory

    # An estimate: the records have durations but no times.
    started = time.time() - sum(record.seconds for record in records)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        # The writer names the file by time and host, so it is renamed afterwards.
        with SummaryWriter(folder) as writer:
            elapsed, times = 0.0, {}
            for record in records:
                elapsed += record.seconds
                times[record.step] = started + elapsed
                _write_scalars(writer, record, times[record.step])
            for preview in previews:
                content = fetch(preview.key)
                if content is not None:
                    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
                    tag = f"previews/{re.sub(NO_TAG, '_', preview.prompt)}"
                    when = times.get(preview.step, started)
                    writer.add_image(tag, pixels, preview.step, when, dataformats="HWC")
        (written,) = Path(folder).iterdir()
        written.replace(path)


def _write_scalars(writer: SummaryWriter, record: Record, when: float) -> None:
    for field, tag in SCALARS.items():
        value = getattr(record, field)
        if value is not None:
            writer.add_scalar(tag, value, record.step, when)
    if record.held_out_loss is not None:
        writer.add_scalar(HELD_OUT, record.held_out_loss, record.step, when)
