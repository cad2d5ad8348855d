"""What the real API server refuses, and with which words."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException
from studio import Studio

from corpus import BAD


@pytest.mark.parametrize(("change", "word"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_specs_are_refused_at_admission(studio: Studio, change: dict[str, Any], word: str) -> None:
    with pytest.raises(ApiException) as refused:
        studio.create(**change)
    assert refused.value.status == 422
    assert word in refused.value.body


def test_spec_is_frozen_but_for_what_may_change(studio: Studio) -> None:
    studio.create()
    for change, word in [
        ({"training": {"rank": 8}}, "training"),
        ({"dataset": {"prefix": "other/"}}, "dataset"),
        ({"profile": "other"}, "profile"),
        ({"annotation": {"mode": "LLM"}}, "annotation.mode"),
        ({"annotation": None}, "annotation.mode"),
        ({"runPolicy": {"backoffLimit": 5}}, "runPolicy.backoffLimit"),
    ]:
        with pytest.raises(ApiException) as refused:
            studio.patch({"spec": change})
        assert f"{word} cannot be changed: create a new object" in refused.value.body
    studio.patch({"spec": {"runPolicy": {"suspend": True, "activeDeadlineSeconds": 60}}})
    studio.patch({"spec": {"annotation": {"approvedCaptions": "a" * 64}}})
    studio.patch({"spec": {"runPolicy": None}})
