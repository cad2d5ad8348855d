"""Alerts and the dashboard use valid PromQL, and metrics and labels that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.request import urlopen

import promql_parser
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from lora_api.status import Phase
from lora_operator import metrics
from lora_trainer.progress import Reporter
from tests.support.helm import CHART, render

DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())
TARGET_LABELS = {"job", "namespace", "pod"}
WATCHED = {
    "replicas": 2,
    "serviceMonitor": {"enabled": True},
    "podMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True, "dailySpendUSD": 2.5},
    "dashboard": {"enabled": True},
}
GRAFANA = {"$__rate_interval": "5m", "$__range": "1d", "$job": "any"}


def served() -> dict[str, set[str]]:
    """Return the labels of every metric of the operator and the stages."""
    found: dict[str, set[str]] = {}
    for metric in vars(metrics).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            labels = set(metric._labelnames)
            ends = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}[
                metric._type
            ]
            found |= {metric._name + end: labels | ({"le"} if end == "_bucket" else set()) for end in ends}
    reporter = Reporter("127.0.0.1", 0)
    try:
        with urlopen(f"http://127.0.0.1:{reporter.port}/metrics") as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    finally:
        reporter.close()
    return found | {sample.name: set(sample.labels) for family in families for sample in family.samples}


def objects(kind: str) -> list[dict[str, Any]]:
    return [found for found in render(WATCHED) if found["kind"] == kind]


def alerts() -> list[dict[str, Any]]:
    (rule,) = objects("PrometheusRule")
    found: list[dict[str, Any]] = rule["spec"]["groups"][0]["rules"]
    return found


def expressions() -> list[tuple[str, str, set[str]]]:
    """Yield the place, the PromQL and the labels in the texts of every alert and panel."""
    found = []
    for alert in alerts():
        words = " ".join(alert["annotations"].values())
        found.append((alert["alert"], alert["expr"], set(re.findall(r"\$labels\.(\w+)", words))))
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for variable, value in GRAFANA.items():
                expression = expression.replace(variable, value)
            found.append((panel["title"], expression, set(re.findall(r"{{(\w+)}}", target["legendFormat"]))))
    return found


def nodes(node: Any) -> Iterator[Any]:
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "args"):
        children = getattr(node, name, None)
        for child in children if isinstance(children, list) else [children]:
            if child is not None:
                yield from nodes(child)


def selectors(found: Iterable[Any]) -> list[Any]:
    return [node for node in found if isinstance(node, promql_parser.VectorSelector)]


def test_expressions_use_metrics_and_labels_that_exist() -> None:
    known = served()
    for where, expression, named in expressions():
        everything = list(nodes(promql_parser.parse(expression)))
        assert {node.name for node in selectors(everything)} <= set(known), where
        for node in selectors(everything):
            matchers = {matcher.name: matcher.value for matcher in node.matchers.matchers}
            assert set(matchers) <= known[node.name] | TARGET_LABELS, where
            assert set(matchers.get("phase", "").split("|")) <= {"", *map(str, Phase)}, where
        for node in everything:
            if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
                below = [known[found.name] for found in selectors(nodes(node))]
                assert all(set(node.modifier.labels) <= labels for labels in below), where
        labels = set().union(*(known[node.name] for node in selectors(everything)))
        assert named <= labels | TARGET_LABELS, where


def test_alerts_look_at_this_releases_operator_only() -> None:
    (service,) = [found for found in objects("Service") if found["metadata"]["name"] == "lora-metrics"]
    expected = {"job": service["metadata"]["name"], "namespace": service["metadata"]["namespace"]}
    for alert in alerts():
        for node in selectors(nodes(promql_parser.parse(alert["expr"]))):
            matchers = {matcher.name: matcher.value for matcher in node.matchers.matchers}
            assert expected.items() <= matchers.items(), alert["alert"]


def test_optional_alerts_are_rendered_with_their_features() -> None:
    def names(**values: Any) -> set[str]:
        (rule,) = [
            o
            for o in render({"prometheusRule": {"enabled": True}, **values})
            if o["kind"] == "PrometheusRule"
        ]
        return {alert["alert"] for alert in rule["spec"]["groups"][0]["rules"]}

    assert {alert["alert"] for alert in alerts()} - names() == {"LoraOperatorWithoutLeader", "LoraSpend"}


def test_monitors_find_the_ports_and_the_pods() -> None:
    (service,) = objects("ServiceMonitor")
    (target,) = [found for found in objects("Service") if found["metadata"]["name"] == "lora-metrics"]
    assert service["spec"]["selector"]["matchLabels"].items() <= target["metadata"]["labels"].items()
    assert service["spec"]["endpoints"][0]["port"] == target["spec"]["ports"][0]["name"]
    (pods,) = objects("PodMonitor")
    assert pods["spec"]["namespaceSelector"] == {"any": True}


def test_the_dashboard_is_the_file_and_its_panels_do_not_overlap() -> None:
    found = next(item for item in objects("ConfigMap") if item["metadata"]["name"] == "lora-dashboard")
    assert json.loads(found["data"]["lora-training-operator.json"]) == DASHBOARD
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_each_alert_leads_to_its_section_of_the_docs() -> None:
    page = CHART.parents[1] / "docs/how-to/alerts.md"
    sections = re.findall(r"^## (\w+)$", page.read_text(), re.MULTILINE)
    assert sections == [alert["alert"] for alert in alerts()]
    for alert in alerts():
        address, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert address.endswith(str(page.relative_to(CHART.parents[1])))
        assert anchor == alert["alert"].lower()
