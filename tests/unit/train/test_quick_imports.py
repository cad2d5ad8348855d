"""In a process of its own: what is imported is imported once."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORTS = """
import gc, sys
from lora_trainer.train.imports import quick_imports
with quick_imports():
    assert not gc.isenabled()
    from lora_trainer.train.step import work
import bitsandbytes, torch
assert gc.isenabled()
weight = torch.zeros(3, requires_grad=True)
optimizer = torch.optim.AdamW([weight])
weight.grad = torch.ones(3)
optimizer.step()
assert weight.lt(0).all()
assert "torch._dynamo.convert_frame" not in sys.modules
"""
USES = {
    "compiling": 'assert torch.compile(lambda x: x + 1, backend="eager")(1) == 2',
    "a module": "from torch._dynamo.utils import counters",
    "a name": "torch._dynamo.reset()",
    "checkpointing": """
from torch.utils.checkpoint import checkpoint
x = torch.ones(2, requires_grad=True)
checkpoint(torch.exp, x, use_reentrant=False).sum().backward()
torch.testing.assert_close(x.grad, x.exp())
""",
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_the_compiler_is_loaded_whole_when_it_is_used(use: str) -> None:
    loaded = (
        "module = sys.modules['torch._dynamo']; assert torch._dynamo is module; assert module.convert_frame"
    )
    script = f"{IMPORTS}\n{use}\n{loaded}\nassert module.disable.__module__ == 'torch._dynamo.decorators'\nprint('sound')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "sound\n", done.stderr
