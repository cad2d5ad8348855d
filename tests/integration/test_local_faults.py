"""Local runs that are stopped, killed or started twice, and homes that cannot be used."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lora_cli.exits import Exit
from lora_cli.local.seaweed import Seaweed, is_free
from lora_cli.local.shared_store import shared_store
from lora_cli.store_access import StoreAddress
from tests.support.demo_server import wait_for_page
from tests.support.ports import free_port
from tests.support.quickstart import LORA, command, environment, lora_run, status_of, write_tiny_model

LONG = "training.maxSteps=2000"


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny-sdxl")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Yield a home, and wait at the end until its store has stopped."""
    folder = tmp_path / "home"
    yield folder
    wait_until(lambda: not (folder / "store/store.json").exists(), "the store still runs")


def wait_until(condition: Callable[[], bool], message: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.05)


def start_training(home: Path, model: Path, **more: object) -> subprocess.Popen[bytes]:
    """Start a run, and return it while it trains after its first checkpoint."""
    process = subprocess.Popen(command(home, model, LONG), env=environment(), **more)  # type: ignore[call-overload]
    wait_until(lambda: is_training(home) or process.poll() is not None, "no checkpoint was saved")
    assert process.poll() is None
    return process  # type: ignore[no-any-return]


def is_training(home: Path) -> bool:
    logs = (home / "runs/default/quickstart").glob("*train*.log")
    return any("checkpoint of step" in log.read_text() for log in logs)


def stage_pid(home: Path) -> int:
    return int((home / "runs/default/quickstart/pid").read_text())


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_sigterm_suspends_a_job_that_no_second_run_may_join(home: Path, tiny_model: Path) -> None:
    process = start_training(home, tiny_model, stdout=subprocess.DEVNULL)
    stage = stage_pid(home)
    second = lora_run(home, tiny_model, LONG)
    assert second.returncode == Exit.USAGE
    assert "another `lora run` works on this job" in second.stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == Exit.WAITING
    assert status_of(home)["phase"] == "Suspended"
    assert not is_alive(stage)


def test_a_closed_terminal_suspends_the_job(home: Path, tiny_model: Path) -> None:
    master, slave = pty.openpty()
    process = start_training(
        home,
        tiny_model,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    stage = stage_pid(home)
    os.close(master)  # the kernel sends SIGHUP, and every later write fails
    assert process.wait(120) == Exit.WAITING
    assert status_of(home)["phase"] == "Suspended"
    assert not is_alive(stage)


@pytest.mark.parametrize("killed", ["run", "store"])
def test_a_killed_run_leaves_a_home_that_works(killed: str, home: Path, tiny_model: Path) -> None:
    process = start_training(home, tiny_model, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    stage = stage_pid(home)
    store = json.loads((home / "store/store.json").read_text())
    os.kill(process.pid if killed == "run" else store["pid"], signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    if killed == "store":
        assert process.returncode == Exit.SETUP
        assert "the local store has ended: run the same command again" in error
        assert not is_alive(stage)
    ran = lora_run(home, tiny_model)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert status_of(home)["phase"] == "Succeeded"


def test_a_killed_store_server_leaves_a_home_that_works(tmp_path: Path, home: Path) -> None:
    holder = [
        sys.executable,
        "-c",
        "import sys, time; from pathlib import Path; from lora_cli.local.shared_store import shared_store\n"
        "with shared_store(Path(sys.argv[1]), ['loras']): print('open', flush=True); time.sleep(60)",
        str(home / "store"),
    ]
    with subprocess.Popen(holder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        store = json.loads((home / "store/store.json").read_text())
        server = Path(f"/proc/{store['pid']}/stat").read_text().split()[3]
        os.kill(int(server), signal.SIGKILL)
        # It holds its lock until it has ended, and would be taken for a running server.
        wait_until(lambda: not is_alive(int(server)), "the server still runs")
        process.kill()
    assert is_alive(store["pid"])  # an orphan, which holds the data's lock
    with shared_store(home / "store", ["loras"]) as address:
        assert address.bucket("loras").list("", 1) == []
    assert not is_alive(store["pid"])


def test_a_finished_job_is_kept_when_it_is_run_again(home: Path, tiny_model: Path) -> None:
    with shared_store(home / "store", ["loras", "datasets", "others"]) as address:
        ran = lora_run(home, tiny_model)  # both use the one store
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert address.bucket("loras").get(status_of(home)["adapter"]["manifestKey"])
    status = home / "runs/default/quickstart/status.yaml"
    before = status.read_bytes()
    again = lora_run(home, tiny_model)
    assert again.returncode == 0
    assert "has succeeded before" in again.stdout
    assert status.read_bytes() == before
    data = subprocess.run(
        [*command(home, tiny_model), "-o", "json"],
        env=environment(), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert json.loads(data)["status"]["phase"] == "Succeeded"
    # A changed job that fails keeps the record of the adapter that exists.
    failed = lora_run(home, tiny_model, "dataset.minImages=7")
    assert failed.returncode == Exit.FAILED
    assert before in [file.read_bytes() for file in status.parent.glob("status-*.yaml")]
    assert "still holds the adapter" in failed.stderr


def test_only_the_owner_can_use_the_store(tmp_path: Path) -> None:
    folder = tmp_path / "a home, with a comma" / "store"
    with shared_store(folder, ["loras"]) as address:
        address.bucket("loras").put("secret", b"weights")
        assert list(folder.glob("*.dat"))  # the data lies in the folder, whatever its name
        assert folder.stat().st_mode & 0o077 == 0
        assert (folder / "store.json").stat().st_mode & 0o077 == 0
        pid = json.loads((folder / "store.json").read_text())["pid"]
        options = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        ports = {o.partition(".")[0][1:]: int(o.partition("=")[2]) for o in options if ".port=" in o}
        assert address.access_key not in options
        # a volume refuses a reader before it looks for the file, whose ID the log may tell
        for path, refusals in (("filer", (401, 404, 405)), ("master", (401, 404, 405)), ("volume", (401,))):
            for request in REQUESTS[path]:
                assert http(ports[path], request) in refusals, request
        assert address.bucket("loras").get("secret") == b"weights"
    wait_until(lambda: not (folder / "store.json").exists(), "the store still runs")


def test_every_port_of_the_store_is_for_its_owner(tmp_path: Path) -> None:
    """All ports listen on loopback only, and need the store's keys or its certificate."""
    with Seaweed(tmp_path / "store", ["loras"]) as store:
        ports = listening(store.pid)
        access = StoreAddress(
            store.endpoint, False, store.credentials.access_key, store.credentials.secret_key
        )
        access.bucket("loras").put("private-name", b"private content")
        assert len(ports) == 10
        assert {address for address, _ in ports} == {"127.0.0.1"}
        s3 = int(store.endpoint.rpartition(":")[2])
        for _, port in ports:
            if port - 10_000 in {http_port for _, http_port in ports}:
                assert greet(port, with_tls=False) == b"", "a gRPC port speaks without TLS"
                with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
                    greet(port, with_tls=True)
            elif port != s3:
                # pages about disks and counts, without objects
                pages = b"".join(page(port, path) for path in STATUS_PAGES)
                assert b"private" not in pages
                assert store.credentials.secret_key.encode() not in pages
        assert http(s3, "GET /loras") == 403
        assert http(s3, "GET /") == 403
        sockets = [path for path in unix_sockets(store.pid) if path.is_absolute()]
        assert sockets
        private = [tmp_path / "store", tmp_path / "store/tls", tmp_path / "store/tls/tls.key", *sockets]
        assert [path for path in private if path.stat().st_mode & 0o077] == []
    assert not any(path.exists() for path in sockets), "a socket is left behind"


STATUS_PAGES = ("/", "/ui/index.html", "/status", "/metrics", "/dir/status", "/vol/status", "/buckets/loras/")


def page(port: int, path: str) -> bytes:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        content: bytes = answer.read()
        return content
    return b""


def open_files(pid: int) -> list[str]:
    """Return the targets of a process's file descriptors, like `socket:[4026]`."""
    targets = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            targets.append(str(file.readlink()))
    return targets


def unix_sockets(pid: int) -> list[Path]:
    """Return the paths of the Unix sockets that a process has bound."""
    targets = open_files(pid)
    rows = (line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:])
    return [Path(row[7]) for row in rows if len(row) > 7 and f"socket:[{row[6]}]" in targets]


def listening(pid: int) -> set[tuple[str, int]]:
    """Return the addresses and ports that a process listens on, over IPv4 and IPv6."""
    targets = open_files(pid)
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in targets:
                address, _, port = local.partition(":")
                host = (
                    socket.inet_ntoa(bytes.fromhex(address)[::-1]) if len(address) == 8 else f"IPv6 {address}"
                )
                found.add((host, int(port, 16)))
    return found


def greet(port: int, *, with_tls: bool) -> bytes:
    """Return the answer of a gRPC port to the preface of HTTP/2."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain) if with_tls else plain as connection,
        suppress(ConnectionError),
    ):
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        return connection.recv(100)
    return b""


REQUESTS = {
    "filer": [
        "GET /buckets/loras/secret",
        "GET /buckets/",
        "POST /buckets/loras/x",
        "DELETE /buckets/loras/secret",
    ],
    "master": ["GET /dir/assign", "GET /dir/lookup?fileId=1,01", "GET /col/delete?collection=loras"],
    "volume": ["GET /1,01637037d6", "DELETE /1,01637037d6"],
}


def http(port: int, request: str) -> int:
    """Return the status of a request without credentials."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"{request} HTTP/1.0\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        return int(connection.recv(4096).split()[1])


def test_a_taken_port_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_cli.local import seaweed

    chosen = []
    choose = seaweed.free_ports
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        def once_taken(host: str, count: int, other_than: int) -> list[int]:
            ports = choose(host, count, other_than)
            if not chosen:
                ports[3] = taken.getsockname()[1]
            chosen.append(ports)
            return ports

        monkeypatch.setattr(seaweed, "free_ports", once_taken)
        with seaweed.Seaweed(tmp_path / "store", ["loras"]) as store:
            assert store.running
        assert len(chosen) == 2


def test_no_port_is_the_grpc_port_of_another() -> None:
    """SeaweedFS refuses to start otherwise."""
    from lora_cli.local.seaweed import GRPC_OFFSET, PORTS, free_ports

    assert not set(PORTS) & {port + GRPC_OFFSET for port in PORTS}
    ports = free_ports("127.0.0.1", 200, other_than=PORTS[0])
    assert len(set(ports)) == 200
    assert PORTS[0] not in ports


@pytest.mark.parametrize("place", ["file/home", "/proc/home"])
def test_an_impossible_home_is_named(tmp_path: Path, tiny_model: Path, place: str) -> None:
    (tmp_path / "file").touch()
    home = tmp_path / place
    ran = lora_run(home, tiny_model)
    assert ran.returncode == Exit.SETUP
    assert ran.stderr.startswith(f"lora: cannot use the folder {home}")
    assert len(ran.stderr.splitlines()) == 1


def test_a_full_disk_is_named(tmp_path: Path, tiny_model: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        ran = lora_run(disk / "home", tiny_model)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert ran.returncode == Exit.SETUP
    assert f"the disk of {disk}/home" in ran.stderr
    assert "is full" in ran.stderr


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs another user")
def test_a_home_of_another_user_is_named(tmp_path: Path) -> None:
    home = Path("/root-only-home")
    script = f"from pathlib import Path; from lora_cli.local.shared_store import make_private; make_private(Path('{home}'))"
    ran = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", script],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert f"cannot use the folder {home}: Permission denied" in ran.stderr


def test_a_missing_key_is_reported_before_anything_starts(home: Path, tiny_model: Path) -> None:
    changes = ("annotation.mode=LLM", "annotation.existingCaptions=Overwrite")
    ran = lora_run(home, tiny_model, *changes)
    assert ran.returncode == Exit.USAGE
    assert "ANTHROPIC_API_KEY is not set" in ran.stderr
    assert "annotation.mode=Template" in ran.stderr
    assert not home.exists()


def test_a_missing_gpu_is_reported_before_anything_starts(home: Path, tiny_model: Path) -> None:
    ran = lora_run(home, tiny_model, "resources.train.gpus=1", CUDA_VISIBLE_DEVICES="")
    assert ran.returncode == Exit.SETUP
    assert "PyTorch can use no GPU" in ran.stderr
    assert not home.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_demo_ends_with_its_page_and_store(home: Path, number: signal.Signals) -> None:
    (home / "store").mkdir(parents=True)
    port = free_port()
    process = subprocess.Popen(
        [LORA, "demo", "--home", str(home), "--port", str(port)], env=environment(), stdout=subprocess.DEVNULL
    )
    wait_for_page(port)
    process.send_signal(number)
    assert process.wait(60) == Exit.OK
    assert is_free("127.0.0.1", port)


def test_the_page_of_a_killed_demo_ends(home: Path) -> None:
    (home / "store").mkdir(parents=True)
    port = free_port()
    process = subprocess.Popen(
        [LORA, "demo", "--home", str(home), "--port", str(port)], env=environment(), stdout=subprocess.DEVNULL
    )
    wait_for_page(port)
    process.kill()
    process.wait()
    wait_until(lambda: is_free("127.0.0.1", port), "the page still runs")


def test_a_demo_whose_store_was_killed_says_so_and_ends(home: Path) -> None:
    (home / "store").mkdir(parents=True)
    port = free_port()
    with subprocess.Popen(
        [LORA, "demo", "--home", str(home), "--port", str(port)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for_page(port)
        os.kill(json.loads((home / "store/store.json").read_text())["pid"], signal.SIGKILL)
        _, error = process.communicate(timeout=60)
    assert process.returncode == Exit.SETUP
    assert "the local store has ended" in error
    assert is_free("127.0.0.1", port)


def test_a_demo_on_a_taken_port_fails_at_once(home: Path) -> None:
    (home / "store").mkdir(parents=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = subprocess.run(
            [LORA, "demo", "--home", str(home), "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.returncode == Exit.USAGE
    assert f"port {port} is in use" in ran.stderr
    assert ran.stdout == ""
