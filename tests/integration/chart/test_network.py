"""Network policies: each pod reaches what it needs, on the ports of the profiles."""

from __future__ import annotations

from typing import Any

import pytest

from lora_api.stages import StageName
from lora_operator.decide import StartAnnotation, StartTraining
from lora_operator.manifests import CLUSTER, build_job, build_stage_config
from lora_operator.settings import Images
from tests.support.builders import HASH, snapshot
from tests.support.helm import VALUE_SETS, render

INTERNET = "0.0.0.0/0"


def policies(values: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (found["metadata"]["namespace"], found["metadata"]["name"]): found["spec"]
        for found in render(values)
        if found["kind"] == "NetworkPolicy"
    }


def reach(policy: dict[str, Any]) -> set[tuple[int, str]]:
    """Return the port and the destination of every egress rule: `any`, or the first CIDR or selector."""

    def where(rule: dict[str, Any]) -> str:
        if "to" not in rule:
            return "any"
        first = rule["to"][0]
        return str(first["ipBlock"]["cidr"]) if "ipBlock" in first else "selected"

    return {(port["port"], where(rule)) for rule in policy["egress"] for port in rule["ports"]}


DNS = (53, "selected")
STORE = {"endpoint": "minio.minio.svc:9000"}
NO_HUB: dict[str, Any] = {
    "llm": None,
    "models": {"sdxl-base-1.0": {"source": "store", "key": "m/", "repo": None, "variant": None, "vae": None}},
}
CASES = [
    ("defaults", {}, {DNS, (9000, "selected"), (443, INTERNET)}, {DNS, (9000, "selected"), (443, INTERNET)}),
    (
        "no LLM, model in the store",
        NO_HUB,
        {DNS, (9000, "selected")},
        {DNS, (9000, "selected")},
    ),
    (
        "LLM in the cluster",
        {"llm": {"provider": "openai", "baseURL": "http://vllm.llm.svc:8000/v1"}},
        {DNS, (9000, "selected"), (8000, "selected")},
        {DNS, (9000, "selected"), (443, INTERNET)},
    ),
    (
        "LLM elsewhere",
        {"llm": {"provider": "openai", "baseURL": "https://llm.example.com/v1"}},
        {DNS, (9000, "selected"), (443, "any")},
        {DNS, (9000, "selected"), (443, INTERNET)},
    ),
    (
        "model in the pod",
        {"llm": {"provider": "transformers"}},
        {DNS, (9000, "selected"), (443, INTERNET)},
        {DNS, (9000, "selected"), (443, INTERNET)},
    ),
    (
        "segmentation model on the hub",
        {**NO_HUB, "segmentation": {"source": "hub", "repo": "CIDAS/clipseg-rd64-refined"}},
        {DNS, (9000, "selected"), (443, INTERNET)},
        {DNS, (9000, "selected")},
    ),
    (
        "segmentation model in the store",
        {**NO_HUB, "segmentation": {"source": "store", "key": "models/clipseg/"}},
        {DNS, (9000, "selected")},
        {DNS, (9000, "selected")},
    ),
    (
        "segmentation model from a cache",
        {
            **NO_HUB,
            "segmentation": {"source": "hub", "repo": "CIDAS/clipseg-rd64-refined"},
            "modelCache": {"persistentVolumeClaim": "models"},
        },
        {DNS, (9000, "selected")},
        {DNS, (9000, "selected")},
    ),
    (
        "store without a port",
        {"store": {"endpoint": "s3.amazonaws.com"}},
        {DNS, (443, "any"), (443, INTERNET)},
        {DNS, (443, "any"), (443, INTERNET)},
    ),
    (
        "store without a port or TLS",
        {"store": {"endpoint": "minio", "secure": False}},
        {DNS, (80, "any"), (443, INTERNET)},
        {DNS, (80, "any"), (443, INTERNET)},
    ),
    (
        "models from a cache",
        {"modelCache": {"persistentVolumeClaim": "models"}},
        {DNS, (9000, "selected"), (443, INTERNET)},
        {DNS, (9000, "selected")},
    ),
]


@pytest.mark.parametrize(("profile", "annotate", "train"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_stages_reach_what_their_profiles_need(profile: Any, annotate: Any, train: Any) -> None:
    found = policies({"profiles": {"default": profile}, "networkPolicy": {"jobNamespaces": ["studio"]}})
    assert reach(found["studio", "lora-annotate"]) == annotate
    assert reach(found["studio", "lora-train"]) == train


def test_a_namespace_is_given_only_what_its_own_profiles_need() -> None:
    def profile(namespaces: list[str], port: int) -> dict[str, Any]:
        return {"namespaces": namespaces, "store": {"endpoint": f"s:{port}"}, "models": {}}

    profiles = {
        "default": None,
        "a": profile(["team-?"], 1001),
        "b": profile(["team-[!a]", "x"], 1002),
        "c": profile(["team-*"], 1003),
        "d": profile(["eam-a"], 1004),
        "nobody": profile([], 1005),
    }
    found = policies(
        {"profiles": profiles, "networkPolicy": {"jobNamespaces": ["team-a", "team-b", "team-ab"]}}
    )
    ports = {
        name: {port for port, _ in reach(spec)} - {53}
        for name, spec in found.items()
        if name[1] == "lora-train"
    }
    assert ports == {
        ("team-a", "lora-train"): {1001, 1003},
        ("team-b", "lora-train"): {1001, 1002, 1003},
        ("team-ab", "lora-train"): {1003},
    }


def test_a_namespace_that_no_profile_allows_is_given_nothing() -> None:
    found = policies(
        {"profiles": {"default": {"namespaces": ["x"]}}, "networkPolicy": {"jobNamespaces": ["y"]}}
    )
    assert [reach(found["y", f"lora-{step}"]) for step in ("annotate", "train")] == [{DNS}, {DNS}]
    for spec in found.values():
        assert all(rule.get("ports") for rule in spec["egress"])


def test_the_watched_namespaces_get_policies_unless_others_are_named() -> None:
    found = policies({"watchNamespaces": ["studio"]})
    assert {("studio", "lora-annotate"), ("studio", "lora-train")} <= found.keys()
    found = policies({"watchNamespaces": ["studio"], "networkPolicy": {"jobNamespaces": ["other"]}})
    assert {namespace for namespace, _ in found} == {"lora-system", "other"}


def test_policies_select_the_pods_that_the_operator_makes() -> None:
    found = policies({"networkPolicy": {"jobNamespaces": ["studio"]}})
    starts = {StageName.ANNOTATE: StartAnnotation(1), StageName.TRAIN: StartTraining(1, "c" * 64, HASH)}
    for step, start in starts.items():
        view = snapshot()
        job = build_job(view, build_stage_config(view, start, CLUSTER), Images("a", "t"))
        labels = job["spec"]["template"]["metadata"]["labels"]
        port = job["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"]
        policy = found["studio", f"lora-{step}"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
        assert policy["ingress"][0]["ports"] == [{"port": port}]
        asked = found["lora-system", "lora"]["egress"][1]
        assert asked["ports"] == [{"port": port}]
        assert asked["to"][0]["podSelector"]["matchLabels"].items() <= labels.items()


def test_only_the_operator_reads_progress_unless_prometheus_does_too() -> None:
    def sources(**values: Any) -> Any:
        spec = policies(
            {"networkPolicy": {"jobNamespaces": ["studio"], **values.pop("policy", {})}, **values}
        )
        return spec["studio", "lora-train"]["ingress"][0].get("from")

    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    alone = sources()
    assert alone[0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "lora-system"}
    assert alone[0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "operator"
    assert len(alone) == 1
    assert sources(policy={"metricsFrom": [monitoring]}) == alone
    assert sources(podMonitor={"enabled": True}) is None
    assert sources(podMonitor={"enabled": True}, policy={"metricsFrom": [monitoring]}) == [*alone, monitoring]


def test_the_operator_reaches_the_api_server_and_stages_only() -> None:
    only = [{"ipBlock": {"cidr": "10.0.0.1/32"}}]
    spec = policies({"networkPolicy": {"apiServer": {"to": only, "ports": [6443]}}})["lora-system", "lora"]
    assert reach(spec) == {(6443, "10.0.0.1/32"), (8080, "selected")}


def test_where_policies_are_off_there_are_none() -> None:
    assert (
        policies(
            {
                "networkPolicy": {"enabled": False, "jobNamespaces": ["studio"]},
                "trialStore": {"enabled": True},
            }
        )
        == {}
    )


def test_the_operator_reaches_the_webhooks_of_the_profiles_and_gets_their_secrets() -> None:
    values = VALUE_SETS["announcing"]
    found = reach(policies(values)["lora-system", "lora"])
    without = reach(policies({})["lora-system", "lora"])
    assert found - without == {DNS, (8080, "selected"), (443, "any")} - without
    peer = {"ipBlock": {"cidr": "10.1.2.3/32"}}
    named = reach(policies({**values, "networkPolicy": {"webhook": {"to": [peer]}}})["lora-system", "lora"])
    assert {(8080, "10.1.2.3/32"), (443, "10.1.2.3/32")} <= named
    deployment = next(item for item in render(values) if item["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    mounts = {
        mount["name"]: mount["mountPath"]
        for mount in pod["containers"][0]["volumeMounts"]
        if mount["name"].startswith("webhook")
    }
    secrets = {volume["name"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
    assert {mounts[name]: secret["secretName"] for name, secret in secrets.items()} == {
        "/etc/lora-webhooks/lora-webhook": "lora-webhook",
        "/etc/lora-webhooks/studio-webhook": "studio-webhook",
    }
    assert all(secret["optional"] for secret in secrets.values())
