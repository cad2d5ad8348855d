"""The rules of the API server and of the models accept and refuse the same pairs of values."""

from __future__ import annotations

import json
import re
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from pydantic import ValidationError

from lora_api import API_VERSION, GROUP, KIND, PLURAL, VERSION
from lora_api.job import JobSpec
from lora_api.rules import RULES, Repeated, unique_lists
from tests.support import matrix
from tests.support.builders import wire_spec
from tests.support.cluster.harness import NamespaceClient

SECTIONS = ("dataset", "annotation", "training", "output")
EXTRA: dict[str, list[Any]] = {
    "resources.train.gpus": [0, 1],
    "training.learningRate": ["1e-4", "1"],
    "training.textEncoder.learningRate": ["5e-6", "1"],
    "training.tokenEmbeddings.learningRate": ["3e-4", "1"],
    "training.tokenEmbeddings.tokens": [2, 3],
    "training.maxSteps": [500, 3],
    "training.adapter.blocks": [[], [{"block": "mid_block", "rank": 2}], [{"block": "mid_block"}]],
    "training.preview.prompts": [[], ["a", "a"]],
    "training.augmentation.extraResolutions": [[], [512, 512], [2048]],
    "training.variants": [
        [],
        [{"name": "a", "rank": 2}],
        [{"name": "a", "seed": 2}],
        [{"name": "a", "rank": 2}, {"name": "a", "rank": 4}],
    ],
    "annotation.approvedCaptions": ["", "a" * 64],
}
"""Values of other fields that rules read."""


def refusals(error: str) -> set[str]:
    """Return the rules that an error names. The API server has its own message for repeated items."""
    repeated = {
        field for field in unique_lists() if re.search(rf"spec\.{field}\[\d+\]: Duplicate value", error)
    }
    messages = {rule.message for rule in RULES if rule.message in error}
    for rule in RULES:
        first = rule.predicates[0]
        if isinstance(first, Repeated) and first.field in repeated:
            messages.add(rule.message)
    return messages


def model_refuses(spec: dict[str, Any]) -> set[str]:
    try:
        JobSpec.model_validate(spec)
    except ValidationError as error:
        return refusals(str(error))
    return set()


def server_refuses(cluster: NamespaceClient, spec: dict[str, Any]) -> set[str]:
    job = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "pair"}, "spec": spec}
    try:
        client.CustomObjectsApi(cluster.api).create_namespaced_custom_object(
            GROUP, VERSION, cluster.namespace, PLURAL, job, dry_run="All"
        )
    except ApiException as error:
        if error.status != 422:
            raise
        return refusals(json.loads(error.body)["message"])
    return set()


def test_the_api_server_and_the_model_refuse_the_same(cluster: NamespaceClient) -> None:
    table = {**matrix.all_parameters(SECTIONS), **EXTRA}
    alone = [{path: value} for path, values in table.items() for value in values]
    seen: set[str] = set()
    accepted = 0
    for row in [*alone, *matrix.library_rows(table)]:
        spec = matrix.settings(row, {})
        spec = {**wire_spec(), **spec, "dataset": {"prefix": "p/", **spec.get("dataset", {})}}
        expected = model_refuses(spec)
        assert server_refuses(cluster, spec) == expected, spec
        seen |= expected
        accepted += not expected
    assert len(seen) > len(RULES) / 2
    assert accepted > len(alone) / 2
