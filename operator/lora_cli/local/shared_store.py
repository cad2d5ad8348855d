"""The store of a home, shared by all commands that use the home at the same time.

A separate server process (`store_server`) starts the store for the first command and ends it after the last one. Each
command holds a shared lock on `users.lock`. The kernel releases the lock however the command ends, so that no store
remains after a crash, SIGKILL or a closed terminal. Stage processes inherit the lock, so a stage that outlives its
command keeps its store.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import MachineError
from ..store_access import StoreAddress
from .seaweed import SeaweedError

START_SECONDS = 120
MIN_FREE_BYTES, MIN_FREE_SHARE = 200 << 20, 0.01
"""Bytes, and share of the disk, that must be free. SeaweedFS refuses all writes when less than 1 % is free."""
ADDRESS, USERS, STARTING, SERVER = "store.json", "users.lock", "start.lock", "server.lock"
"""Files in the store's folder: its address and keys, and the locks held by the users of the store (shared), by a command
that starts a server, and by the server while it runs."""


_servers: list[subprocess.Popen[bytes]] = []
"""Server processes that this process has started. They outlive it. Python warns of a running child process when the
last reference to it is dropped."""


@contextmanager
def shared_store(folder: Path, buckets: list[str]) -> Iterator[StoreAddress]:
    """Use the store of a home, and start it if it does not run.

    Args:
        folder: folder of the store's data; it is made readable by its owner only.

    Raises:
        MachineError: when the folder cannot be used, the disk is full, or the store does not start.
    """
    make_private(folder)
    folder = folder.resolve()  # `stop_orphaned_store` compares it with the working directory of a process
    with (folder / USERS).open("a") as users:
        # Blocks while a server without users ends its store: it then holds this lock exclusively.
        fcntl.flock(users, fcntl.LOCK_SH)
        os.set_inheritable(users.fileno(), True)
        with FileLock(folder / STARTING, timeout=START_SECONDS):
            address = _running(folder) or _start(folder, buckets)
        _create_buckets(address, buckets)
        yield address


def make_private(folder: Path) -> None:
    """Create a folder, or change an existing one, so that only its owner can read it.

    Raises:
        MachineError: when the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise MachineError(
            f"cannot use the folder {folder}: {error.strerror}; name another --home, which you can write to"
        ) from None


def require_space(folder: Path) -> None:
    """Check that the disk of an existing folder has enough free space for the store.

    Raises:
        MachineError: when the disk is full.
    """
    disk = shutil.disk_usage(folder)
    free, needed = disk.free, max(MIN_FREE_BYTES, int(MIN_FREE_SHARE * disk.total))
    if free < needed:
        raise MachineError(
            f"the disk of {folder} is full: {free / 2**20:.0f} MiB are free, and {needed / 2**20:.0f} MiB are "
            "needed; free some space, or name a --home on another disk"
        )


def _running(folder: Path) -> StoreAddress | None:
    """Return the store's address if its server runs and the store answers; None otherwise."""
    try:
        with FileLock(folder / SERVER, timeout=0):
            pass
    except Timeout:
        address = _read(folder)
        return address if address and _answers(address) else None
    # No server holds the lock. A server that was killed may have left its store running.
    stop_orphaned_store(folder)
    return None


def require_running(folder: Path, address: StoreAddress) -> None:
    """Check that a store has not ended. A store that was started in its place has another address.

    Raises:
        SeaweedError: when the store has ended, for example because it was killed.
    """
    pid = _read_pid(folder)
    if pid is None or _read(folder) != address or not Path(f"/proc/{pid}").exists():
        raise SeaweedError(
            f"the local store has ended: run the same command again; {folder / 'seaweed.log'} may show why it ended"
        )


def _start(folder: Path, buckets: list[str]) -> StoreAddress:
    """Start a server process, wait until its store answers, and return the address."""
    require_space(folder)
    (folder / ADDRESS).unlink(missing_ok=True)
    log = folder / "server.log"
    with log.open("ab") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "lora_cli.local.store_server", str(folder), ",".join(buckets)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C and a closed terminal do not end it
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if (address := _read(folder)) and _answers(address):
            _servers.append(server)
            return address
        if server.poll() is not None:
            break
        time.sleep(0.05)
    else:  # the deadline passed without a `break`
        server.terminate()
    require_space(folder)  # if the disk is full now, report that instead
    raise SeaweedError(f"the local store did not start; see {folder / 'seaweed.log'} and {log}")


def _read(folder: Path) -> StoreAddress | None:
    try:
        data = json.loads((folder / ADDRESS).read_text())
        return StoreAddress(data["endpoint"], False, data["accessKey"], data["secretKey"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_pid(folder: Path) -> int | None:
    """Return the process id of the store; None when there is no valid file with it."""
    try:
        return int(json.loads((folder / ADDRESS).read_text())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _answers(address: StoreAddress) -> bool:
    from lora_trainer.store import list_buckets

    return list_buckets(address.client(retries=0)) is not None


def _create_buckets(address: StoreAddress, buckets: list[str]) -> None:
    """Create missing buckets. A running store has only those of the profiles of earlier commands."""
    from lora_trainer.store import list_buckets

    client = address.client()
    existing = list_buckets(client) or []
    for name in buckets:
        if name not in existing:
            client.make_bucket(name)


def stop_orphaned_store(folder: Path) -> None:
    """End the store of a server that was killed, so that two stores never use one folder of data."""
    pid = _read_pid(folder)
    if pid is None:
        return
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        place = Path(f"/proc/{pid}/cwd").resolve()
    except OSError:
        return
    # The process id may have been given to another program since.
    if b"mini" in command.split(b"\0") and place == folder.resolve():
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            for _ in range(100):
                if not Path(f"/proc/{pid}").exists():
                    break
                time.sleep(0.05)
    (folder / ADDRESS).unlink(missing_ok=True)
