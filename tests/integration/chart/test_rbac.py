"""The operator's permissions are exactly those that its code needs."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grimp
import pytest
from kubernetes.aio import client

from lora_api import GROUP, PLURAL
from lora_operator import api
from lora_operator.handlers import EventHandlers
from lora_operator.kopf_adapter import _build_registry
from lora_operator.settings import ProfilesFile, read_settings
from tests.support.helm import render


class Permission(NamedTuple):
    group: str
    resource: str
    verb: str


VERBS = {
    "read": "get",
    "list_pages": "list",
    "create": "create",
    "replace": "update",
    "patch": "patch",
    "patch_status": "patch",
    "delete": "delete",
}
REVIEWS = {"tokenreviews", "subjectaccessreviews"}
KINDS = {name: kind for name, kind in vars(api).items() if isinstance(kind, api.Kind)}


def calls(source: str) -> Iterator[Permission]:
    """Return the permissions that the calls of `Api` in a module need. Each call names its kind literally."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr in VERBS and last_name(node.func.value).lstrip("_") == "api":
            kind = KINDS.get(last_name(node.args[0]))
            assert kind, f"line {node.lineno}: of which kind is {ast.unparse(node)}?"
            part = "/status" if node.func.attr == "patch_status" else ""
            yield Permission(kind.group, kind.plural + part, VERBS[node.func.attr])


def last_name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def modules() -> Iterator[tuple[str, str]]:
    """Return the name and the source of every module of the operator."""
    graph = grimp.build_graph("lora_operator")
    for name in sorted({"lora_operator.__main__", *graph.find_upstream_modules("lora_operator.__main__")}):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        yield name, Path(spec.origin).read_text()


def watches(tmp_path: Path) -> set[Permission]:
    """Return what kopf lists and watches for the operator's handlers."""
    settings = read_settings({"LORA_ANNOTATE_IMAGE": "a", "LORA_TRAIN_IMAGE": "t"})
    profiles = tmp_path / "profiles.yaml"
    profiles.write_text("profiles: {}")
    handlers = EventHandlers(settings, ProfilesFile(profiles), api.Api(client.ApiClient()))

    async def stop() -> None: ...

    registry = _build_registry(handlers.watches, handlers.start, stop)
    selectors = registry._watching.get_all_selectors() | registry._indexing.get_all_selectors()
    return {
        Permission(str(selector.group), str(selector.plural or selector.any_name), verb)
        for selector in selectors
        for verb in ("get", "list", "watch")
    }


def granted(objects: list[dict[str, Any]], name: str) -> set[Permission]:
    roles = [o for o in objects if o["kind"] in ("Role", "ClusterRole") and o["metadata"]["name"] == name]
    assert roles
    return {
        Permission(group, resource, verb)
        for rule in roles[0]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def needed() -> set[Permission]:
    return {call for _, source in modules() for call in calls(source)}


def test_the_operators_role_is_what_its_code_calls(tmp_path: Path) -> None:
    everywhere = {permission for permission in needed() if permission.resource not in {"leases", *REVIEWS}}
    assert granted(render(), "lora") == everywhere | watches(tmp_path)


def test_tokens_are_reviewed_only_where_the_metrics_ask_for_them() -> None:
    objects = render({"metrics": {"authentication": "Token"}})
    assert granted(objects, "lora-metrics") == {p for p in needed() if p.resource in REVIEWS}
    assert not [o for o in render() if o["kind"] == "ClusterRole" and "metrics" in o["metadata"]["name"]]


def test_with_several_replicas_the_role_allows_leader_election() -> None:
    assert granted(render({"replicas": 2}), "lora-leader") == {p for p in needed() if p.resource == "leases"}


def test_no_call_is_overlooked() -> None:
    verbs = {name for name, found in inspect.getmembers(api.Api, inspect.isfunction) if name[0] != "_"}
    assert verbs == set(VERBS)
    with pytest.raises(AssertionError, match="of which kind is"):
        list(calls("async def f(self, kind):\n    await self.api.delete(kind, 'a', 'b', 'c')\n"))
    assert set(calls("self.api.create(BATCH_JOBS, 'a', {})")) == {("batch", "jobs", "create")}
    for name, source in modules():
        others = name != "lora_operator.api" and (
            "kubernetes.aio import" in source or "kubernetes import" in source
        )
        assert not others, f"{name} goes past Api"


def test_no_role_has_a_wildcard_or_reads_secrets(rendered: list[dict[str, Any]]) -> None:
    for found in rendered:
        for rule in found.get("rules", []) if found["kind"] in ("Role", "ClusterRole") else []:
            words = {word for names in rule.values() for word in names}
            assert not words & {"*", "secrets", "escalate", "bind", "impersonate"}, found["metadata"]["name"]


def test_scope_namespaced_has_no_role_beyond_its_namespaces() -> None:
    objects = render(
        {"rbac": {"scope": "namespaced", "aggregate": False}, "watchNamespaces": ["studio", "atelier"]}
    )
    assert not [o for o in objects if o["kind"].startswith("ClusterRole")]
    for kind in ("Role", "RoleBinding"):
        assert [o["metadata"]["namespace"] for o in objects if o["kind"] == kind] == ["studio", "atelier"]


def test_bindings_bind_roles_and_accounts_that_are_there(rendered: list[dict[str, Any]]) -> None:
    names = {(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in rendered}
    for found in rendered:
        if found["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            role = found["roleRef"]
            assert (role["kind"], found["metadata"].get("namespace"), role["name"]) in names
            assert [("ServiceAccount", s["namespace"], s["name"]) in names for s in found["subjects"]] == [
                True
            ]


def test_users_of_the_cluster_see_and_edit_jobs() -> None:
    objects = render()
    read = {Permission(GROUP, PLURAL, verb) for verb in ("get", "list", "watch")}
    write = {
        Permission(GROUP, PLURAL, verb)
        for verb in ("create", "update", "patch", "delete", "deletecollection")
    }
    assert granted(objects, "lora-view") == read
    assert granted(objects, "lora-edit") == write

    def to(name: str) -> set[str]:
        role = next(o for o in objects if o["metadata"]["name"] == name)
        return {label.rsplit("-", 1)[1] for label in role["metadata"]["labels"] if "aggregate-to" in label}

    assert (to("lora-view"), to("lora-edit")) == ({"view", "edit", "admin"}, {"edit", "admin"})


def test_the_demo_is_off_and_read_only_by_default() -> None:
    assert not [body for body in render({}) if body["metadata"]["name"].endswith("-demo")]
    values: dict[str, Any] = {
        "demo": {"enabled": True, "jobs": {"access": "serviceAccount", "namespaces": ["studio"]}}
    }
    found = {body["kind"]: body for body in render(values) if body["metadata"]["name"].endswith("-demo")}
    [container] = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert {"name": "LORA_READ_ONLY", "value": "true"} in container["env"]
    assert [rule["verbs"] for rule in found["Role"]["rules"]] == [["list"]]
    values["demo"]["readOnly"] = False
    [role] = [
        body
        for body in render(values)
        if (body["kind"], body["metadata"].get("namespace")) == ("Role", "studio")
        and body["metadata"]["name"].endswith("-demo")
    ]
    assert [rule["verbs"] for rule in role["rules"]] == [["list", "create"]]


def test_the_account_that_reads_metrics_can_do_nothing_else() -> None:
    objects = render({"metrics": {"authentication": "Token"}, "serviceMonitor": {"enabled": True}})
    account = "lora-metrics-reader"
    bound = [
        body["roleRef"]["name"]
        for body in objects
        if body["kind"] in ("RoleBinding", "ClusterRoleBinding")
        and account in [subject["name"] for subject in body["subjects"]]
    ]
    assert bound == [account]
    [role] = [
        body for body in objects if (body["kind"], body["metadata"]["name"]) == ("ClusterRole", account)
    ]
    assert role["rules"] == [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]
