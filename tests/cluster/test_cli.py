"""Tests of the command `lora` against a real API server.

They are one module because they share the environment, the job file and the helpers that set a job's status.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from typer.testing import CliRunner, Result

from lora_api import API_VERSION, GROUP, KIND, PLURAL, VERSION
from lora_api.keys import JobKeys
from lora_api.manifest import Manifest
from lora_api.status import AdapterStatus
from lora_cli.main import app
from lora_operator import names
from tests.conftest import RunningStore
from tests.support.builders import wire_spec
from tests.support.cluster.harness import NamespaceClient
from tests.support.cluster.plane import ControlPlane
from tests.support.cluster.terminal import Terminal

BIN = Path(sys.executable).parent
SCREEN_CLEARED = "\x1b[2J"
Cli = Callable[..., Result]


@pytest.fixture
def environment(plane: ControlPlane) -> dict[str, str]:
    path = f"{BIN}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "KUBECONFIG": str(plane.kubeconfig), "COLUMNS": "150"}


@pytest.fixture
def lora(cluster: NamespaceClient, environment: dict[str, str]) -> Cli:
    """Return a function that runs `lora` in the test's namespace, in this process to save its start."""

    def run(*arguments: str, **more: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "-n", cluster.namespace], env={**environment, **more})

    return run


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "statue"}, "spec": wire_spec()}
    file.write_text(yaml.safe_dump(body))
    return file


def set_status(cluster: NamespaceClient, name: str, **status: Any) -> None:
    cluster.custom.patch_namespaced_custom_object_status(
        GROUP, VERSION, cluster.namespace, PLURAL, name, {"status": status}
    )


def at_step(step: int, total: int = 500) -> dict[str, Any]:
    return {
        "phase": "Training",
        "progress": {
            "step": step,
            "totalSteps": total,
            "percent": 100 * step // total,
            "loss": "0.0832",
            "etaSeconds": (total - step) // 2,
            "display": f"{step}/{total}",
        },
    }


def ended(succeeded: bool, reason: str, message: str) -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {"status": str(succeeded), "reason": reason, "message": message, "lastTransitionTime": now}
    kinds = [{"type": kind, **condition} for kind in ("Succeeded", "Finished")]
    return {"phase": "Succeeded" if succeeded else "Failed", "conditions": kinds}


def test_a_job_is_submitted_shown_suspended_and_resumed(
    lora: Cli, cluster: NamespaceClient, job_file: Path
) -> None:
    checked = CliRunner().invoke(app, ["validate", str(job_file), "-o", "yaml"])
    assert yaml.safe_load(checked.stdout)["spec"]["training"]["rank"] == 16
    tried = lora("submit", str(job_file), "--dry-run")
    assert (
        tried.exit_code,
        cluster.custom.list_namespaced_custom_object(GROUP, VERSION, cluster.namespace, PLURAL)["items"],
    ) == (0, []), tried.stderr
    made = lora("submit", str(job_file), "--set", "training.maxSteps=7", "-o", "json")
    assert json.loads(made.stdout)["spec"]["training"]["maxSteps"] == 7, made.stderr
    again = lora("submit", str(job_file))
    assert again.exit_code == 64
    assert "already exists: give it another name" in again.stderr

    listed = lora("list")
    assert "statue" in listed.stdout
    assert "Pending" in listed.stdout
    assert max(map(len, listed.stdout.splitlines())) < 300  # a pipe has no width to fill
    as_yaml = yaml.safe_load(lora("list", "-o", "yaml").stdout)
    assert [item["metadata"]["name"] for item in as_yaml["items"]] == ["statue"]

    assert lora("suspend", f"{cluster.namespace}/statue").exit_code == 0
    assert cluster.get()["spec"]["runPolicy"]["suspend"] is True
    resumed = yaml.safe_load(lora("resume", "statue", "-o", "yaml").stdout)
    assert resumed["spec"]["runPolicy"]["suspend"] is False
    set_status(cluster, "statue", **ended(True, "Trained", ""))
    over = lora("suspend", "statue")
    assert over.exit_code == 64
    assert "has ended (Succeeded)" in over.stderr


def test_a_job_is_described_and_deleted(lora: Cli, cluster: NamespaceClient) -> None:
    job = cluster.create("statue", training={"recipe": "Auto", "rank": 8}, annotation={"masks": "GrabCut"})
    set_status(cluster, "statue", **ended(False, "Diverged", "the loss is not finite [/x]"))
    event = {
        "metadata": {"name": "statue.1", "namespace": cluster.namespace},
        "eventTime": "2026-01-01T00:00:00.000001Z", "reportingController": "test", "reportingInstance": "test",
        "action": "Train", "reason": "Diverged", "note": "the loss is \x1b[31mnot finite", "type": "Warning",
        "regarding": {"apiVersion": job["apiVersion"], "kind": KIND, "name": "statue",
                      "namespace": cluster.namespace, "uid": job["metadata"]["uid"]},
    }  # fmt: skip
    client.EventsV1Api(cluster.api).create_namespaced_event(cluster.namespace, event)
    described = lora("describe", "statue")
    assert described.exit_code == 0, described.stderr
    for words in (
        "Failed",
        "CUS statue",
        "the loss is not finite [/x]",
        "Event",
        "Warning  Diverged",
        "masks: GrabCut",
        "recipe Subject sets ",
        "maxSteps 100 per image",
    ):
        assert words in described.stdout
    assert "\x1b" not in described.stdout
    data = json.loads(lora("describe", "statue", "-o", "json").stdout)
    assert data["events"][0]["note"].startswith("the loss is")

    assert "--yes" in lora("delete", "statue").stderr
    assert cluster.get()["metadata"]["name"] == "statue"
    assert lora("delete", "statue", "--yes").exit_code == 0
    assert lora("describe", "statue").exit_code == 64


def test_a_deletion_is_confirmed_at_a_terminal(cluster: NamespaceClient, environment: dict[str, str]) -> None:
    cluster.create("statue")
    command = ["lora", "delete", "statue", "-n", cluster.namespace]
    for answer, code in (("n\n", 1), ("\x04", 130)):  # Ctrl-D, which ends the command as Ctrl-C does
        with Terminal(command, environment, rows=24, columns=120) as terminal:
            while "[y/N]" not in terminal.written:
                assert terminal.read(20)
            terminal.write(answer)
            assert "Abort" not in terminal.end()
            assert terminal.process.returncode == code
    piped = ["/bin/sh", "-c", f"echo y | {' '.join(command)}"]
    with Terminal(piped, environment, rows=24, columns=120) as terminal:
        assert "needs --yes" in terminal.end()
        assert terminal.process.returncode == 64
    assert cluster.get()["metadata"]["name"] == "statue"


def test_jobs_that_were_created_before_a_refused_one_are_printed(
    lora: Cli, cluster: NamespaceClient, job_file: Path, tmp_path: Path
) -> None:
    cluster.create("other")
    other = tmp_path / "other.yaml"
    other.write_text(job_file.read_text().replace("name: statue", "name: other"))
    ran = lora("submit", str(job_file), str(other), "-o", "json")
    assert ran.exit_code == 64
    assert '"other" already exists' in ran.stderr
    assert [item["metadata"]["name"] for item in json.loads(ran.stdout)["items"]] == ["statue"]


def test_a_namespace_that_does_not_exist_is_named(environment: dict[str, str], job_file: Path) -> None:
    ran = CliRunner().invoke(app, ["submit", str(job_file), "-n", "absent"], env=environment)
    assert ran.exit_code == 64
    assert (
        ran.stderr
        == "lora: there is no namespace 'absent': `kubectl get namespaces` lists those of the cluster\n"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.rank=0", "spec.training.rank"),
        ("concept.token.x=1", "token is a value"),
        ("x", "FIELD=VALUE"),
    ],
)
def test_an_invalid_job_is_not_sent(
    lora: Cli, cluster: NamespaceClient, job_file: Path, change: str, words: str
) -> None:
    ran = lora("submit", str(job_file), "--set", change)
    assert ran.exit_code == 64
    assert words in ran.stderr
    assert (
        cluster.custom.list_namespaced_custom_object(GROUP, VERSION, cluster.namespace, PLURAL)["items"] == []
    )


def test_refusals_of_the_cluster_are_reported_in_plain_words(
    lora: Cli, environment: dict[str, str], tmp_path: Path
) -> None:
    absent = lora("suspend", "nobody")
    assert absent.exit_code == 64
    assert '"nobody" not found' in absent.stderr
    assert "lora list" in absent.stderr
    broken = yaml.safe_load(Path(environment["KUBECONFIG"]).read_text())
    file = tmp_path / "kubeconfig"

    broken["users"][0]["user"]["token"] = "nobody"
    file.write_text(yaml.safe_dump(broken))
    assert "does not know who you are" in lora("list", KUBECONFIG=str(file)).stderr

    broken["users"][0]["user"] = {}  # the API server then reads the request as that of system:anonymous
    file.write_text(yaml.safe_dump(broken))
    assert "does not know who you are" in lora("list", KUBECONFIG=str(file)).stderr

    broken["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    file.write_text(yaml.safe_dump(broken))
    away = lora("list", KUBECONFIG=str(file))
    assert "https://127.0.0.1:9 cannot be reached" in away.stderr
    assert "no context 'other'; it has: test" in lora("list", "--context", "other").stderr
    assert "no cluster is configured" in lora("list", KUBECONFIG=str(tmp_path / "absent")).stderr


def test_it_is_a_plugin_of_kubectl_and_completes_names(
    lora: Cli, cluster: NamespaceClient, environment: Any
) -> None:
    cluster.create("marble")
    listed = subprocess.run(
        ["kubectl", "lora", "list", "-n", cluster.namespace],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "marble" in listed.stdout, listed.stderr
    config = yaml.safe_load(Path(environment["KUBECONFIG"]).read_text())
    config["contexts"][0]["context"]["namespace"] = cluster.namespace
    file = Path(environment["KUBECONFIG"]).with_name("here.kubeconfig")
    file.write_text(yaml.safe_dump(config))
    completion = {"_LORA_COMPLETE": "complete_bash", "COMP_WORDS": "lora suspend ma", "COMP_CWORD": "2"}
    asked = subprocess.run(
        ["lora"],
        env={**environment, **completion, "KUBECONFIG": str(file)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.stdout.split() == ["marble"]


def test_fifty_jobs_are_watched_without_flicker_or_lag(
    cluster: NamespaceClient, environment: dict[str, str]
) -> None:
    for number in range(50):
        cluster.create(f"job-{number:02d}")
        set_status(cluster, f"job-{number:02d}", **at_step(10 * number))
    command = ["lora", "watch", "-n", cluster.namespace]
    with Terminal(command, environment, rows=60, columns=150) as terminal:
        terminal.wait_for("50 jobs: 50 Training")
        assert all(f"job-{number:02d}" in terminal.screen for number in range(50))
        position = len(terminal.written)
        waits = []
        for step in range(491, 500):
            set_status(cluster, "job-07", **at_step(step))
            waits.append(terminal.wait_for(f"{step}/500"))
        cluster.delete("job-00")
        terminal.wait_for("49 jobs")
        cluster.create("job-99")
        terminal.wait_for("job-99")
        # each frame overwrites the last one without clearing it, so the screen cannot flicker
        assert SCREEN_CLEARED not in terminal.written
        assert "\x1b[2K" not in terminal.written[position:]
        assert sorted(waits)[len(waits) // 2] < 1.0, waits
        last = terminal.interrupt()
        assert "job-99" in last  # it does not use the alternate screen
        assert terminal.process.returncode == 0


def test_a_small_terminal_shows_jobs_in_progress_and_counts_the_rest(
    cluster: NamespaceClient, environment: dict[str, str]
) -> None:
    for number in range(12):
        cluster.create(f"job-{number:02d}")
    set_status(cluster, "job-11", **at_step(40))
    with Terminal(["lora", "watch", "-n", cluster.namespace], environment, rows=10, columns=100) as terminal:
        terminal.wait_for("12 jobs (5 not shown): 1 Training, 11 Pending")
        assert "job-11" in terminal.screen.splitlines()[2]


@pytest.mark.parametrize(
    ("end", "code"), [(ended(True, "Trained", "done"), 0), (ended(False, "Diverged", "x"), 1)]
)
def test_watching_a_job_ends_with_its_exit_code(
    lora: Cli, cluster: NamespaceClient, environment: dict[str, str], end: dict[str, Any], code: int
) -> None:
    cluster.create("statue")
    command = ["lora", "watch", "statue", "-n", cluster.namespace]
    with Terminal(command, environment, rows=24, columns=120) as terminal:
        terminal.wait_for("Pending")
        set_status(cluster, "statue", **at_step(250))
        terminal.wait_for("250/500")
        set_status(cluster, "statue", **end)
        assert end["phase"] in terminal.end()
        assert terminal.process.returncode == code
    piped = lora("watch", "statue")
    reason = end["conditions"][0]["reason"]
    assert f"{cluster.namespace}/statue  {end['phase']}  250/500  {reason}" in piped.stdout
    assert piped.exit_code == code
    absent = lora("watch", "nobody")
    assert absent.exit_code == 64
    assert "has no job nobody" in absent.stderr


def publish(cluster: NamespaceClient, store: RunningStore) -> Manifest:
    """Write the result of a finished training to the store and to the job's status."""
    keys = JobKeys(cluster.namespace, "statue", cluster.create("statue")["metadata"]["uid"])
    files = [
        store.store.output.put(keys.attempt(1) + name, name.encode() * 1000)
        for name in ("adapter.safetensors", "report.html")
    ]
    adapter = AdapterStatus(
        uri=store.store.output.uri(files[0].key),
        sha256=files[0].sha256,
        bytes=files[0].bytes,
        format="diffusers",
        manifest_key=keys.manifest(1),
    )
    manifest = Manifest(
        namespace=keys.namespace,
        name=keys.name,
        uid=keys.uid,
        attempt=1,
        input_hash="",
        adapter=adapter,
        files=files,
        steps=1,
        seed=0,
        first_loss=1,
        final_loss=1,
        versions={},
    )
    store.store.output.put(keys.manifest(1), json.dumps(manifest.to_wire()).encode())
    set_status(cluster, "statue", adapter=adapter.to_wire(), **ended(True, "Trained", ""))
    return manifest


def test_an_adapter_is_fetched_and_verified(
    lora: Cli, cluster: NamespaceClient, running_store: RunningStore, tmp_path: Path
) -> None:
    keys = running_store.seaweed.credentials
    reach = {
        "LORA_STORE_ENDPOINT": running_store.seaweed.endpoint,
        "LORA_STORE_ACCESS_KEY": keys.access_key,
        "LORA_STORE_SECRET_KEY": keys.secret_key,
    }
    manifest = publish(cluster, running_store)
    folder = tmp_path / "out"
    got = lora("get", "statue", str(folder), "--http", **reach)
    assert got.exit_code == 0, got.stderr
    assert manifest.adapter.sha256 in got.stdout
    assert (folder / "adapter.safetensors").read_bytes() == b"adapter.safetensors" * 1000
    fetched = json.loads(lora("get", "statue", str(folder), "--http", "-o", "json", **reach).stdout)
    assert fetched["adapter"]["sha256"] == manifest.adapter.sha256

    running_store.store.output.put(manifest.files[0].key, b"something else")
    harmed = lora("get", "statue", str(tmp_path / "harmed"), "--http", **reach)
    assert harmed.exit_code == 65
    assert "is not the file that was published" in harmed.stderr
    assert list((tmp_path / "harmed").iterdir()) == []
    away = lora("get", "statue", "--http", **{**reach, "LORA_STORE_ENDPOINT": "127.0.0.1:9"})
    assert "the store at 127.0.0.1:9 cannot be used" in away.stderr
    assert away.exit_code == 69
    refused = lora("get", "statue", "--http", **{**reach, "LORA_STORE_SECRET_KEY": "wrong"})
    assert "refused the credentials" in refused.stderr
    assert refused.exit_code == 77
    cluster.create("young")
    assert "has no adapter yet: it is Pending" in lora("get", "young", "--http", **reach).stderr


@pytest.fixture
def node(api: client.ApiClient, tmp_path: Path) -> Iterator[str]:
    """A node whose kubelet serves logs only."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=node",
         "-keyout", tmp_path / "key", "-out", tmp_path / "crt"],
        check=True, capture_output=True,
    )  # fmt: skip

    class Kubelet(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"{self.path.partition('?')[0]}\nstep 20 of 500\n".encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Kubelet)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    core = client.CoreV1Api(api)
    core.create_node({"metadata": {"name": "node"}})
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": server.server_port}},
    }
    core.patch_node_status("node", {"status": status})
    yield "node"
    core.delete_node("node")
    server.shutdown()
    server.server_close()


def test_the_log_of_the_newest_pod_is_printed(lora: Cli, cluster: NamespaceClient, node: str) -> None:
    uid = cluster.create("statue")["metadata"]["uid"]
    assert "has no pod:" in lora("logs", "statue").stderr
    for stage in ("annotate", "train"):
        labels = {names.MANAGED_BY: names.OPERATOR, names.JOB_UID: uid, names.STAGE: stage}
        cluster.core.create_namespaced_pod(
            cluster.namespace,
            {
                "metadata": {"name": f"statue-{stage}", "labels": labels},
                "spec": {"nodeName": node, "containers": [{"name": "stage", "image": "x"}]},
            },
        )
    for arguments in (["--stage", "annotate"], ["--stage", "train", "-f"]):
        result = lora("logs", "statue", *arguments)
        assert result.stdout.splitlines() == [
            f"/containerLogs/{cluster.namespace}/statue-{arguments[1]}/stage",
            "step 20 of 500",
        ], result.stderr
