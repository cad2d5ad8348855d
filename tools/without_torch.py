"""Print hashed requirements without torch, which is installed before: `python tools/without_torch.py FILE`.

For a CPU build of torch, CUDA's packages are removed as well; for another build they are kept. Torch is installed
separately because it comes from an index of its own: if pip used two indexes at once, the owner of a name on one of them
could replace a package of the other.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TORCH = re.compile(r"torch==")
CUDA = re.compile(r"(torch==|triton|nvidia-|cuda-)")


def without_torch(text: str, cpu: bool = True) -> str:
    """Remove torch and its hashes from a hashed requirements file, and CUDA's packages for a CPU build."""
    dropped = CUDA if cpu else TORCH
    kept = []
    keep = True
    for line in text.splitlines(keepends=True):
        # A requirement begins at the start of a line. Its hashes follow on indented lines and are kept or removed with it.
        if line[0] not in " #\n":
            keep = dropped.match(line) is None
        if keep:
            kept.append(line)
    return "".join(kept)


def is_cpu_build() -> bool:
    """Return whether the installed torch is a CPU build. Without torch the answer is yes."""
    try:
        return "+cpu" in version("torch")
    except PackageNotFoundError:
        return True


if __name__ == "__main__":
    sys.stdout.write(without_torch(Path(sys.argv[1]).read_text(), cpu=is_cpu_build()))
