"""Run a module on the simulated device: `python -m tests.cuda.run_module MODULE ARGUMENT...`."""

from __future__ import annotations

import os
import runpy
import sys

from . import simulated_cuda  # noqa: F401 - before torch

if __name__ == "__main__":
    del sys.argv[0]
    # As `__main__` in `sys.modules`, so that processes that the module starts find its functions.
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    # Without the interpreter's own end: it sometimes aborts while native threads of the simulated device still run.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
