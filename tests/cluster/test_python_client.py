"""The Python client on a real API server and a real store, and the code of its page in the docs."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_api import GROUP, PLURAL, VERSION
from lora_api.status import Phase
from lora_cli.client import AsyncLoraClient, JobFailedError, LoraClient
from lora_cli.errors import ClusterError, UsageError
from lora_cli.job_file import InvalidManifestError
from tests.cluster.test_cli import at_step, ended, publish, set_status
from tests.conftest import RunningStore
from tests.support.builders import wire_spec
from tests.support.cluster.harness import NamespaceClient
from tests.support.cluster.plane import ControlPlane
from tests.support.quickstart import ROOT

PAGE = (ROOT / "docs/how-to/python-client.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def kubeconfig(
    plane: ControlPlane, cluster: NamespaceClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Write a kubeconfig whose context is the test's namespace."""
    config = yaml.safe_load(plane.kubeconfig.read_text())
    config["contexts"][0]["context"]["namespace"] = cluster.namespace
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(file))
    return file


def is_there(cluster: NamespaceClient, name: str) -> bool:
    jobs = cluster.custom.list_namespaced_custom_object(GROUP, VERSION, cluster.namespace, PLURAL)["items"]
    return any(job["metadata"]["name"] == name for job in jobs)


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "apiVersion": "lora-training.io/v1alpha1",
        "kind": "LoraTrainingJob",
        "metadata": {"name": "statue"},
        "spec": wire_spec(**changes),
    }


def test_the_pages_first_example_runs(
    kubeconfig: Path, cluster: NamespaceClient, running_store: RunningStore, tmp_path: Path
) -> None:
    keys = running_store.seaweed.credentials
    reach = {
        "LORA_STORE_ENDPOINT": f"http://{running_store.seaweed.endpoint}",
        "LORA_STORE_ACCESS_KEY": keys.access_key,
        "LORA_STORE_SECRET_KEY": keys.secret_key,
    }
    published = publish(cluster, running_store)
    status = cluster.get()["status"]
    script = [sys.executable, "-c", EXAMPLES[0]]
    with subprocess.Popen(
        script, cwd=tmp_path, env={**os.environ, **reach}, stdout=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not is_there(cluster, "marble-statue"):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        set_status(cluster, "marble-statue", **at_step(250))
        time.sleep(0.5)
        set_status(cluster, "marble-statue", **status)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.splitlines()[0].startswith("Pending")
    assert "Training 250/500" in output
    assert output.splitlines()[-1] == published.adapter.sha256
    assert (tmp_path / "marble-statue/adapter.safetensors").is_file()


def test_the_pages_second_example_runs(kubeconfig: Path, cluster: NamespaceClient) -> None:
    cluster.create("statue")
    set_status(cluster, "statue", **ended(True, "Trained", ""))
    ran = subprocess.run([sys.executable, "-c", EXAMPLES[1]], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "statue\n"), ran.stderr


def test_a_job_is_submitted_changed_and_deleted(kubeconfig: Path, cluster: NamespaceClient) -> None:
    with LoraClient() as lora:
        job = lora.submit(manifest())
        assert (job.namespace, job.phase, job.spec.concept.token) == (cluster.namespace, Phase.PENDING, "CUS")
        assert lora.suspend("statue").spec.run_policy.suspend
        assert not lora.resume("statue").spec.run_policy.suspend
        assert [item.name for item in lora.list_jobs()] == ["statue"]
        with pytest.raises(InvalidManifestError, match=r"did you mean maxSteps\?"):
            lora.submit(manifest(training={"max_steps": 5}))
        with pytest.raises(ClusterError, match="already exists"):
            lora.submit(manifest())
        with pytest.raises(UsageError, match="namespace 'other'"):
            lora.submit({**manifest(), "metadata": {"name": "statue", "namespace": "other"}})
        lora.delete(job)
        with pytest.raises(ClusterError, match="not found"):
            lora.get("statue")
    with pytest.raises(UsageError, match="`with` block"):
        lora.get("statue")


def test_waiting_ends_with_the_job(kubeconfig: Path, cluster: NamespaceClient) -> None:
    cluster.create("statue")
    with LoraClient() as lora, pytest.raises(TimeoutError):
        lora.wait("statue", timeout=0.5)

    async def follow() -> None:
        async with AsyncLoraClient() as lora:
            waiting = asyncio.create_task(lora.wait("statue"))
            await asyncio.sleep(0.5)
            await asyncio.to_thread(set_status, cluster, "statue", **ended(False, "Diverged", "not finite"))
            with pytest.raises(JobFailedError, match="Diverged: not finite"):
                await waiting

    asyncio.run(follow())


def test_a_deleted_job_ends_its_watch(kubeconfig: Path, cluster: NamespaceClient) -> None:
    cluster.create("statue")
    with LoraClient() as lora:
        changes = lora.watch("statue")
        assert next(changes).name == "statue"
        cluster.delete("statue")
        with pytest.raises(ClusterError, match="was deleted"):
            next(changes)
