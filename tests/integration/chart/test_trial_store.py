"""The trial store runs with the chart's command line, and its upload contains what the quickstart's job needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml
from minio import Minio
from minio.error import MinioException

from lora_api.job import parse_spec
from lora_api.profile import Profiles
from lora_cli.local.seaweed import free_ports
from tests.support.helm import CHART, render

QUICKSTART = yaml.safe_load((CHART.parents[1] / "examples" / "quickstart" / "job.yaml").read_text())
MODEL = CHART.parents[1] / "examples" / "shapes-sdxl"
ENDPOINT = "lora-trial-store.lora-system.svc:8333"


@pytest.fixture(scope="module")
def trial() -> list[dict[str, Any]]:
    return render({"trialStore": {"enabled": True}})


def named(objects: list[dict[str, Any]], kind: str, name: str) -> list[dict[str, Any]]:
    return [found for found in objects if found["kind"] == kind and found["metadata"]["name"] == name]


def test_jobs_find_the_store_by_the_default_profile(trial: list[dict[str, Any]]) -> None:
    (found,) = named(trial, "ConfigMap", "lora-profiles")
    profile = Profiles.model_validate(yaml.safe_load(found["data"]["profiles.yaml"])).profiles["default"]
    assert (profile.store.endpoint, profile.store.secure) == (ENDPOINT, False)
    assert profile.models[parse_spec(QUICKSTART["spec"]).base_model].identity() == "store:models/shapes-sdxl/"
    assert "sdxl-base-1.0" in profile.models
    secrets = named(trial, "Secret", profile.store.secret_name)
    assert {secret["metadata"]["namespace"] for secret in secrets} == {
        "lora-system",
        QUICKSTART["metadata"]["namespace"],
    }
    assert secrets[0]["stringData"] == secrets[1]["stringData"]
    assert len(secrets[0]["stringData"]["secretKey"]) == 32


def test_another_profile_and_a_fixed_address() -> None:
    objects = render(
        {
            "trialStore": {
                "enabled": True,
                "profile": "trial",
                "clusterIP": "10.96.0.9",
                "jobNamespace": "lora-system",
            }
        }
    )
    (found,) = named(objects, "ConfigMap", "lora-profiles")
    profiles = Profiles.model_validate(yaml.safe_load(found["data"]["profiles.yaml"])).profiles
    assert profiles["trial"].store.endpoint == "10.96.0.9:8333"
    assert profiles["default"].store.endpoint == "minio.minio.svc:9000"
    assert len(named(objects, "Secret", "lora-store")) == 1
    (service,) = named(objects, "Service", "lora-trial-store")
    assert service["spec"]["clusterIP"] == "10.96.0.9"


@pytest.fixture
def store(trial: list[dict[str, Any]], tmp_path: Path) -> Iterator[tuple[str, Minio]]:
    """Run SeaweedFS with the chart's command line, except for folders and ports."""
    (deployment,) = named(trial, "Deployment", "lora-trial-store")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    program, mini, *options = container["command"]
    master, volume, filer, s3 = free_ports("127.0.0.1", 4)
    own_options = {"-dir": tmp_path / "data", "-ip.bind": "127.0.0.1", "-s3.port": s3}
    own_options |= {"-master.port": master, "-volume.port": volume, "-filer.port": filer}
    kept = [option for option in options if option.partition("=")[0] not in own_options]
    (tmp_path / "data").mkdir()
    weed = shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert weed is not None
    environment = {"HOME": str(tmp_path), "AWS_ACCESS_KEY_ID": "trial", "AWS_SECRET_ACCESS_KEY": "s" * 32}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [weed, mini, *kept, *(f"{name}={value}" for name, value in own_options.items())],
            env=environment,
            cwd=tmp_path / "data",
            stdout=log,
            stderr=log,
        )
    endpoint = f"127.0.0.1:{s3}"
    client = Minio(
        endpoint,
        "trial",
        "s" * 32,
        secure=False,
        region="us-east-1",
        http_client=urllib3.PoolManager(timeout=10, retries=False),
    )
    try:
        deadline = time.monotonic() + 30
        while not answers(client):
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the buckets are not there"
            time.sleep(0.1)
        yield endpoint, client
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(client: Minio) -> bool:
    try:
        return client.bucket_exists("datasets") and client.bucket_exists("loras")
    except (MinioException, urllib3.exceptions.HTTPError):
        return False


def test_the_upload_leaves_the_quickstarts_data(
    trial: list[dict[str, Any]], store: tuple[str, Minio], tmp_path: Path
) -> None:
    (job,) = named(trial, "Job", "lora-trial-data")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == [ENDPOINT, "/var/run/lora/store", "/etc/lora", "/opt/shapes-sdxl"]
    (given,) = named(trial, "ConfigMap", "lora-trial-data")
    script = tmp_path / "trial_data.py"
    script.write_text(given["data"][script.name])
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "accessKey").write_text("trial")
    (secret / "secretKey").write_text("s" * 32)
    endpoint, client = store
    images = CHART / "files" / "quickstart"
    assert set(given["binaryData"]) == {path.name for path in images.iterdir()}
    subprocess.run([sys.executable, script, endpoint, secret, images, MODEL], check=True)

    spec = parse_spec(QUICKSTART["spec"])
    found = {item.object_name: item.size for item in client.list_objects("datasets", recursive=True)}
    images = [name for name in found if str(name).startswith(spec.dataset.prefix)]
    assert spec.dataset.min_images <= len(images) <= spec.dataset.max_images
    assert "models/shapes-sdxl/model_index.json" in found
    assert "models/shapes-sdxl/unet/diffusion_pytorch_model.safetensors" in found
