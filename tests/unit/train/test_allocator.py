"""In a process of its own: the setting lasts."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
from resource import RUSAGE_SELF, getrusage
import torch
from lora_trainer.train.allocator import keep_freed_memory

def faults():
    before = getrusage(RUSAGE_SELF).ru_minflt
    for size in (8, 16, 4) * 3:
        torch.ones(size * 2**20, dtype=torch.uint8)
    return getrusage(RUSAGE_SELF).ru_minflt - before

before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""


def test_memory_is_used_again_without_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 10
