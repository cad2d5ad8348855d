"""The operator may do what its code does, and nothing else: neither can change without the other."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grimp
import pytest
from kubernetes.aio import client

from helm import render
from lora_api import GROUP, PLURAL
from lora_operator.handlers import Wiring
from lora_operator.settings import ProfilesFile, read_settings


class Permission(NamedTuple):
    group: str
    resource: str
    verb: str


GROUPS = {
    "BatchV1Api": "batch",
    "CoordinationV1Api": "coordination.k8s.io",
    "CoreV1Api": "",
    "CustomObjectsApi": GROUP,
    "EventsV1Api": "events.k8s.io",
}
PLURALS = {"job": "jobs", "event": "events", "lease": "leases", "custom_object": PLURAL}
VERBS = {
    "read": "get",
    "get": "get",
    "list": "list",
    "create": "create",
    "replace": "update",
    "patch": "patch",
    "delete": "delete",
}
METHOD = re.compile(r"(read|get|list|create|replace|patch|delete)_(?:namespaced|cluster)_(\w+?)(_status)?")
ELECTION = "kubernetes.aio.leaderelection"


def calls(source: str) -> Iterator[Permission]:
    """What the generated client's methods that a module calls amount to.

    A method's class decides the API group, so it has to be plain where a client comes from: assigned from
    `client.BatchV1Api(...)` in the same module.
    """
    tree = ast.parse(source)
    owners: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and (kind := api_class(node.value)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            owners |= {last_name(target): kind for target in targets}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (found := METHOD.fullmatch(node.attr)):
            kind = api_class(node.value) or owners.get(last_name(node.value))
            assert kind, f"line {node.lineno}: whose method is {node.attr}?"
            verb, thing, status = found.groups()
            yield Permission(GROUPS[kind], PLURALS[thing] + ("/status" if status else ""), VERBS[verb])


def api_class(node: ast.expr | None) -> str:
    name = last_name(node.func) if isinstance(node, ast.Call) else ""
    return name if inspect.isclass(getattr(client, name, None)) and name.endswith("Api") else ""


def last_name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def sources() -> Iterator[str]:
    """The operator's modules, and the library's lock where one of them uses it."""
    graph = grimp.build_graph("lora_operator")
    modules = {"lora_operator.__main__", *graph.find_upstream_modules("lora_operator.__main__")}
    for name in sorted(modules):
        text = source_of(name)
        yield text
        yield from (
            source_of(found) for found in re.findall(rf"from ({ELECTION}\.resourcelock\.\w+) import", text)
        )


def source_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text()


def watches(tmp_path: Path) -> set[Permission]:
    """What kopf lists and watches for the handlers that the operator registers."""
    settings = read_settings({"LORA_ANNOTATE_IMAGE": "a", "LORA_TRAIN_IMAGE": "t"})
    profiles = tmp_path / "profiles.yaml"
    profiles.write_text("profiles: {}")
    registry = Wiring(settings, ProfilesFile(profiles), client.ApiClient()).registry
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
    return {call for source in sources() for call in calls(source)}


def test_the_operators_role_is_what_its_code_calls(tmp_path: Path) -> None:
    everywhere = {permission for permission in needed() if permission.resource != "leases"}
    assert granted(render(), "lora") == everywhere | watches(tmp_path)


def test_where_several_elect_a_leader_the_role_is_what_that_takes() -> None:
    assert granted(render({"replicas": 2}), "lora-leader") == {p for p in needed() if p.resource == "leases"}


def test_a_call_whose_client_is_not_plain_is_not_overlooked() -> None:
    with pytest.raises(AssertionError, match="whose method is list_namespaced_event"):
        list(calls("async def f(x):\n    await x.list_namespaced_event('a')\n"))
    text = "core = client.CoreV1Api(api)\ncore.list_namespaced_event('a')\nclient.BatchV1Api().read_namespaced_job_status\n"
    assert set(calls(text)) == {("", "events", "list"), ("batch", "jobs/status", "get")}


def test_no_role_has_a_wildcard_or_reads_secrets(rendered: list[dict[str, Any]]) -> None:
    for found in rendered:
        for rule in found.get("rules", []) if found["kind"] in ("Role", "ClusterRole") else []:
            words = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert not words & {"*", "secrets", "escalate", "bind", "impersonate"}, found["metadata"]["name"]


def test_one_team_has_no_role_beyond_its_namespaces() -> None:
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
