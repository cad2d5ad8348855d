"""Write the table of `docs/reference/gpus.md`: which job fits on which GPU, by the memory plan.

Usage: python -m tools.gpu_table [--check]

It traces 14 steps of SDXL, which takes three minutes the first time; traces are cached as for `lora estimate`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from lora_api.job import Training
from lora_cli.estimate import SDXL
from lora_trainer.train.memory.gpus import GPUS
from lora_trainer.train.memory.plan import Machine, Plan, best_plan
from lora_trainer.units import GIB

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "gpus.md"
BEGIN, END = "<!-- table: tools/gpu_table.py -->", "<!-- end -->"
CARDS = ("RTX3060", "T4", "L4", "RTX4090", "A100", "H100")
ROOM = 1000 * GIB
JOBS: dict[str, dict[str, Any]] = {
    "the default: LoRA, rank 16, 1024 px": {},
    "rank 128": {"rank": 128, "alpha": 128},
    "batch 4": {"batchSize": 4},
    "text encoders": {"textEncoder": {"train": True}},
    "token embeddings": {"tokenEmbeddings": {"train": True}},
    "DoRA": {"adapter": {"useDoRA": True}},
    "LoKr": {"adapter": {"type": "LoKr"}},
    "NF4": {"quantizeBase": "NF4"},
    "DreamBoothExtract": {"method": "DreamBoothExtract"},
}
"""Jobs by their names in the table, as changes of the default settings of `training`."""


def plan_of(training: dict[str, Any], checkpointing: str, cache: Path) -> Plan:
    """Plan a job in fp16 on a GPU with room for everything."""
    settings = Training.model_validate({**training, "gradientCheckpointing": checkpointing})
    return best_plan(settings, SDXL, Machine("cuda", ROOM, cache), torch.float16)


def make_table(cache: Path) -> str:
    """Return the table in Markdown: the peaks without and with gradient checkpointing, and what each GPU runs."""
    head = ["Job", "GiB", "GiB with checkpointing", *CARDS]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, training in JOBS.items():
        whole, small = (plan_of(training, choice, cache) for choice in ("Never", "Always"))
        cells = [name, f"{whole.peak / GIB:.1f}", f"{small.peak / GIB:.1f}"]
        for card in CARDS:
            free = int(GPUS[card].memory * GIB)
            choice = best_plan(
                Training.model_validate(training),
                SDXL,
                Machine("cuda", free, cache),
                torch.float16,
            )
            cells.append("no" if not choice.fits else "checkpointing" if choice.checkpointing else "yes")
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lora"
    table = make_table(cache)
    page = PAGE.read_text()
    start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    written = f"{page[:start]}\n{table}\n{page[end:]}"
    if "--check" in sys.argv:
        sys.exit(
            None if written == page else f"{PAGE.name} differs from the plan: run python -m tools.gpu_table"
        )
    PAGE.write_text(written)


if __name__ == "__main__":
    main()
