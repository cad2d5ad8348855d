"""The operator, killed by itself at its n-th write to the API server: `crashing_operator.py N before|after`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from kubernetes.aio.client import ApiClient

from lora_operator.__main__ import main

WRITES = ("POST", "PATCH", "PUT", "DELETE")


def crash_at(number: int, moment: str) -> None:
    call, seen = ApiClient.call_api, 0

    async def wrapper(self: ApiClient, method: str, *arguments: Any, **options: Any) -> Any:
        nonlocal seen
        seen += method in WRITES
        due = seen == number and method in WRITES
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
