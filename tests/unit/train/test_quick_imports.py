"""In a process of its own: what is imported is imported once."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import gc, sys
from lora_trainer.train.imports import quick_imports
with quick_imports():
    assert not gc.isenabled()
    from lora_trainer.train.step import work
import bitsandbytes, torch
assert gc.isenabled()
assert "torch._inductor.compile_fx" not in sys.modules
assert torch.compile(lambda x: x + 1, backend="eager")(1) == 2
print("sound")
"""


def test_the_compiler_is_not_loaded_and_still_works() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout == "sound\n", done.stderr
