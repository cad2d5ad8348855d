"""Build the two libraries from `native/` with g++, once for each version of their sources and installation of PyTorch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).with_name("native")
LIBRARIES = {"fake": ["device_guard.cpp"], "simulated": ["device_guard.cpp", "simulated_kernels.cpp"]}
FOLDER_VARIABLE = "LORA_TEST_CUDA_LIBRARIES"
REAL_GPU = os.environ.get("LORA_TEST_GPU") == "1"
"""Whether the tests run on this machine's GPU and not on the simulated device."""


def missing_tool() -> str | None:
    """Return why the libraries cannot be built here, or None."""
    return None if REAL_GPU or shutil.which("g++") else "g++ is not installed"


def build(name: str) -> Path:
    """Build a library, unless it is there; about ten seconds.

    Must not import PyTorch: the library has to be loaded before it.

    Raises:
        subprocess.CalledProcessError: when the compiler fails.
    """
    folder = Path(
        os.environ.get(FOLDER_VARIABLE) or Path(tempfile.gettempdir()) / f"lora-test-cuda-{os.getuid()}"
    )
    sources = [SOURCES / file for file in LIBRARIES[name]]
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    # The library holds the path of the PyTorch it is linked with, which may be gone or another's the next time.
    installation = f"{importlib.metadata.version('torch')} {torch}"
    digest = hashlib.sha256(
        b"".join(path.read_bytes() for path in sources) + installation.encode()
    ).hexdigest()
    library = folder / f"{name}-{digest[:16]}.so"
    if library.exists():
        return library
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = library.with_suffix(f".{os.getpid()}")
    command = ["g++", "-O1", "-shared", "-fPIC", "-std=c++20", "-w"]
    command += [f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include", *map(str, sources)]
    command += [f"-L{torch}/lib", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch}/lib"]
    subprocess.run([*command, "-o", str(partial)], check=True)
    partial.replace(library)
    return library
