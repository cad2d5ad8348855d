"""Every value of every enum and boolean of training, output and annotation is in a run that `make test` makes."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.integration.annotate.test_settings import ROWS as ANNOTATE_ROWS
from tests.integration.train.test_matrix import SOME
from tests.support import matrix

ROOT = Path(__file__).parents[2]
REUSE = "tests/integration/annotate/test_stage.py::test_an_adapter_of_the_same_inputs_is_reused"
GRAPHS = "tests/integration/train/test_on_cuda.py::test_graphed_steps_give_the_bytes_of_eager_ones"
KINDS = (
    "tests/integration/train/test_on_cuda.py::test_every_kind_trains_to_publication_with_the_loss_of_a_cpu"
)
RECIPES = "tests/integration/train/test_recipes.py::test_every_recipe_trains"
ELSEWHERE: dict[tuple[str, str], str] = {
    ("output.reuse", "IfUnchanged"): REUSE,
    ("output.reuse", "Never"): REUSE,
    ("training.compile", "Always"): GRAPHS,
    ("training.compile", "Never"): GRAPHS,
    ("training.compile", "Auto"): KINDS,
    ("training.mixedPrecision", "fp16"): KINDS,
    **{("training.recipe", name): RECIPES for name in ("None", "Auto", "Subject", "Person", "Style")},
}
"""Values that no matrix has, and the tests that run with them."""


def is_test(name: str) -> bool:
    path, _, function = name.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in ast.walk(tree))


def test_every_value_has_a_run() -> None:
    rows = [*matrix.some_rows(matrix.CPU, SOME), *ANNOTATE_ROWS]
    values = {
        (path, str(value))
        for path in matrix.leaves("training", "output", "annotation")
        for value in matrix.values_of(path) or ()
    }
    assert len(values) > 60
    runs = {(path, str(value)) for row in rows for path, value in row.items()}
    assert sorted(values - runs - ELSEWHERE.keys()) == []
    for name in ELSEWHERE.values():
        assert is_test(name), name
