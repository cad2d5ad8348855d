"""The rules for words, measured on a labelled corpus."""

from __future__ import annotations

import pytest

from lora_trainer.annotate.lint import check_caption
from tests.support.captions import CORPUS


def is_flagged(text: str) -> bool:
    return any(True for _ in check_caption(text, "CUS", "statue"))


def measure(cases: list[tuple[str, bool]]) -> tuple[float, float, list[str]]:
    """Precision, recall, and the captions that are judged wrongly."""
    judged = [(text, bad, is_flagged(text)) for text, bad in cases]
    right = sum(bad and flagged for _, bad, flagged in judged)
    flagged_all = sum(flagged for _, _, flagged in judged)
    bad_all = sum(bad for _, bad, _ in judged)
    wrong = [f"{'missed' if bad else 'flagged'}: {text}" for text, bad, flagged in judged if bad != flagged]
    return right / flagged_all, right / bad_all, wrong


@pytest.mark.parametrize("held_out", [False, True], ids=["tuned", "held out"])
def test_precision_and_recall(held_out, capsys):
    cases = [(text, bad) for text, bad, held in CORPUS if held is held_out]
    precision, recall, wrong = measure(cases)
    with capsys.disabled():
        part = "held out" if held_out else "tuned"
        print(f"\n{part}: {len(cases)} captions, precision {precision:.3f}, recall {recall:.3f}")
    assert precision >= 0.97, wrong
    assert recall >= 0.97, wrong


def test_the_corpus_is_large_and_mixed():
    assert len(CORPUS) >= 200
    assert len({text for text, _, _ in CORPUS}) >= len(CORPUS) - 2
    assert 0.4 < sum(bad for _, bad, _ in CORPUS) / len(CORPUS) < 0.6
