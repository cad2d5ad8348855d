"""`python -m lora_cli.local.store_server FOLDER BUCKETS`: run the store of a home until it has no more users."""

from __future__ import annotations

import fcntl
import json
import signal
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from .private_files import write_private
from .seaweed import Seaweed, SeaweedError
from .shared_store import ADDRESS, SERVER, USERS, stop_orphaned_store

POLL_SECONDS = 0.5


def main(folder: Path, buckets: list[str]) -> int:
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    lock = FileLock(folder / SERVER, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return 0  # another server runs already
    stop_orphaned_store(folder)
    store = Seaweed(folder, buckets)
    try:
        store.start()
        _write_address(folder / ADDRESS, store)
        with (folder / USERS).open("a") as users:
            while store.running and not stopping and not _unused(users.fileno()):
                time.sleep(POLL_SECONDS)
            # `_unused` has taken the lock of the users: a new command waits until this store has ended.
            store.stop()
            (folder / ADDRESS).unlink(missing_ok=True)
            lock.release()
    except SeaweedError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    finally:
        store.stop()
    return 0


def _unused(users: int) -> bool:
    """Return whether no command uses the store. If so, the lock of the users stays held, exclusively."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_address(file: Path, store: Seaweed) -> None:
    """Write the address and the keys of the store to a file that only its owner can read."""
    data = {
        "endpoint": store.endpoint,
        "accessKey": store.credentials.access_key,
        "secretKey": store.credentials.secret_key,
        "pid": store.pid,
    }
    partial = file.with_suffix(".part")
    write_private(partial, json.dumps(data).encode())
    partial.replace(file)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2].split(",")))
