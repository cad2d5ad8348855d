"""Names from the store cannot become options of kubectl."""

from __future__ import annotations

from lora_trainer.annotate.review_store import approval_arguments


def test_a_hostile_name_stays_an_argument() -> None:
    arguments = approval_arguments("--kubeconfig=/tmp/x", "--server=evil:6443", "0" * 64)
    options = [argument for argument in arguments if argument.startswith("-")]
    assert [option.partition("=")[0] for option in options] == ["--namespace", "--type", "--patch"]
