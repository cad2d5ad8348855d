"""The web page in a cluster: jobs are listed and started with the permissions of one token, on a real API server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kubernetes import client
from playwright.sync_api import Page, expect, sync_playwright

from lora_api import GROUP, PLURAL, VERSION
from tests.conftest import RunningStore
from tests.support.cluster.harness import NamespaceClient, until
from tests.support.cluster.plane import ControlPlane
from tests.support.demo_server import serve
from tests.support.quickstart import QUICKSTART

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
IMAGES = sorted((QUICKSTART / "images").glob("*.jpg"))


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no chromium or google-chrome on this machine: apt-get install chromium")
    expect.set_options(timeout=90_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser.new_page(viewport={"width": 1280, "height": 900})
        browser.close()


def account(cluster: NamespaceClient, name: str, verbs: list[str]) -> str:
    """Create a ServiceAccount with these verbs on jobs, as in the chart's Role, and return a token."""
    core, rbac = cluster.core, client.RbacAuthorizationV1Api(cluster.api)
    core.create_namespaced_service_account(cluster.namespace, {"metadata": {"name": name}})
    rule = {"apiGroups": [GROUP], "resources": [PLURAL], "verbs": verbs}
    rbac.create_namespaced_role(cluster.namespace, {"metadata": {"name": name}, "rules": [rule]})
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": cluster.namespace}],
    }
    rbac.create_namespaced_role_binding(cluster.namespace, binding)
    request = {"spec": {"expirationSeconds": 3600, "audiences": []}}
    made = core.create_namespaced_service_account_token(name, cluster.namespace, request)
    return str(made.status.token)


@pytest.fixture
def settings(
    plane: ControlPlane, cluster: NamespaceClient, running_store: RunningStore, tmp_path: Path
) -> dict[str, str]:
    """Return the environment variables of the demo's pod."""
    seaweed = running_store.seaweed
    profile = {
        "store": {"endpoint": seaweed.endpoint, "secure": False},
        "models": {"sdxl-base-1.0": {"source": "store", "key": "models/x/"}},
    }
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"profiles": {"default": profile}}))
    (tmp_path / "accessKey").write_text(seaweed.credentials.access_key)
    (tmp_path / "secretKey").write_text(seaweed.credentials.secret_key)
    return {
        "LORA_PROFILES": str(tmp_path / "profiles.yaml"),
        "LORA_STORE_SECRET": str(tmp_path),
        "LORA_CACHE": str(tmp_path / "cache"),
        "LORA_JOBS_NAMESPACES": cluster.namespace,
        "LORA_KUBERNETES_CA": str(plane.folder / "certs/apiserver.crt"),
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(plane.port),
    }


def start_job(page: Page, url: str, token: str = "") -> None:
    page.goto(f"{url}/new")
    if token:
        box = page.get_by_label("Kubernetes token", exact=True)
        box.fill(token)
        box.press("Enter")
        page.wait_for_timeout(1000)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload", exact=True).click()
    chooser.value.set_files(IMAGES)
    for label, text in (("Token", "CUS"), ("Class", "ring")):
        box = page.get_by_label(label, exact=True)
        box.fill(text)
        box.press("Enter")
        page.wait_for_timeout(1000)
    page.get_by_role("button", name="Train", exact=True).click()


def uploaded(store: RunningStore, cluster: NamespaceClient) -> list[str]:
    return [item.key for item in store.store.input.list(f"uploads/{cluster.namespace}/", 100)]


def test_a_user_starts_jobs_as_far_as_the_users_token_allows(
    page: Page, cluster: NamespaceClient, settings: dict[str, str], running_store: RunningStore
) -> None:
    reader, writer = account(cluster, "reader", ["list"]), account(cluster, "writer", ["list", "create"])
    with serve({**settings, "LORA_JOBS_ACCESS": "user"}) as url:
        start_job(page, url, "not-a-token")
        expect(page.get_by_text("does not accept the token").first).to_be_visible()
        start_job(page, url, reader)
        expect(page.get_by_role("alert").filter(has_text="cannot create").first).to_be_visible()
        assert not uploaded(running_store, cluster), "nothing is stored for a job that is refused"
        start_job(page, url, writer)
        until(
            lambda: cluster.custom.list_namespaced_custom_object(GROUP, VERSION, cluster.namespace, PLURAL)[
                "items"
            ]
        )
        spec = cluster.get("cus-ring")["spec"]
        assert len(uploaded(running_store, cluster)) == len(IMAGES)
        assert all(key.startswith(spec["dataset"]["prefix"]) for key in uploaded(running_store, cluster))
        expect(page.get_by_text("Pending", exact=True).first).to_be_visible()


def test_the_pages_own_account_lists_jobs_in_every_phase(
    page: Page, cluster: NamespaceClient, settings: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(account(cluster, "demo", ["list"]))
    cluster.create("waiting")
    condition = {
        "type": "Succeeded",
        "status": "Unknown",
        "reason": "Unschedulable",
        "message": "no node has a free GPU",
        "lastTransitionTime": "2026-03-01T12:00:00Z",
    }
    cluster.custom.patch_namespaced_custom_object_status(
        GROUP,
        VERSION,
        cluster.namespace,
        PLURAL,
        "waiting",
        {"status": {"phase": "Queued", "conditions": [condition]}},
    )
    access = {"LORA_JOBS_ACCESS": "serviceAccount", "LORA_KUBERNETES_TOKEN": str(tmp_path / "token")}
    with serve({**settings, **access, "LORA_READ_ONLY": "true"}) as url:
        page.goto(f"{url}/jobs")
        expect(page.get_by_text("Unschedulable: no node has a free GPU")).to_be_visible()
        expect(page.get_by_text("Queued", exact=True)).to_be_visible()
        assert page.get_by_role("link", name="New job").count() == 0
