"""Jobs that a real API server refuses, and its messages."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from tests.support.bad_specs import BAD
from tests.support.cluster.harness import NamespaceClient


@pytest.mark.parametrize(("change", "word"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_specs_are_refused_at_admission(
    cluster: NamespaceClient, change: dict[str, Any], word: str
) -> None:
    with pytest.raises(ApiException) as refused:
        cluster.create(**change)
    assert refused.value.status == 422
    assert word in refused.value.body


def test_spec_is_immutable_except_for_its_mutable_fields(cluster: NamespaceClient) -> None:
    cluster.create(annotation={"mode": "Template", "approval": "Required"})
    for change, word in [
        ({"training": {"rank": 8}}, "training"),
        ({"dataset": {"prefix": "other/"}}, "dataset"),
        ({"profile": "other"}, "profile"),
        ({"annotation": {"mode": "LLM"}}, "annotation.mode"),
        ({"annotation": None}, "annotation.mode"),
        ({"runPolicy": {"backoffLimit": 5}}, "runPolicy.backoffLimit"),
    ]:
        with pytest.raises(ApiException) as refused:
            cluster.patch({"spec": change})
        assert f"{word} cannot be changed: create a new object" in refused.value.body
    cluster.patch({"spec": {"runPolicy": {"suspend": True, "activeDeadlineSeconds": 60}}})
    cluster.patch({"spec": {"annotation": {"approvedCaptions": "a" * 64}}})
    cluster.patch({"spec": {"runPolicy": None}})
