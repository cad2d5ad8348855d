"""An operator that kills itself before or after its n-th write to the API server.

Usage: `crashing_operator.py N before|after`.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from kubernetes.aio.client import ApiClient

from lora_operator.__main__ import main

WRITES = ("POST", "PATCH", "PUT", "DELETE")


def crash_at(number: int, moment: str) -> None:
    """Replace the client's `call_api` by one that sends SIGKILL to this process at a write."""
    call, writes = ApiClient.call_api, 0

    async def wrapper(self: ApiClient, method: str, *arguments: Any, **options: Any) -> Any:
        nonlocal writes
        writes += method in WRITES
        due = writes == number and method in WRITES
        if due and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = await call(self, method, *arguments, **options)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    ApiClient.call_api = wrapper


if __name__ == "__main__":
    crash_at(int(sys.argv[1]), sys.argv[2])
    sys.exit(main([]))
