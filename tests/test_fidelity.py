"""Every method states its source and has an oracle test that names the same repository and commit.

The oracle tests of `conf/<axis>/<name>.yaml` are the functions `test_it_equals_its_source*` of
`tests/<axis>/test_<name>.py`; see `tests/oracle.py`.
"""

import ast

import pytest

from src.source import Source
from tests.support import ROOT, class_of, option, options

AXES = ("residual", "norm", "embedding", "recurrence", "mlp")
#: Axes that lie in another folder than tests/<axis>.
FOLDERS = {"mlp": "models/mlp"}
METHODS = [(axis, name) for axis in AXES for name in options(axis)]
every_method = pytest.mark.parametrize(("axis", "name"), METHODS)


def oracle_docstrings(axis: str, name: str) -> list[str]:
    """Return the docstrings of a method's oracle tests."""
    tree = ast.parse((ROOT / f"tests/{FOLDERS.get(axis, axis)}/test_{name}.py").read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [ast.get_docstring(f) or "" for f in found if f.name.startswith("test_it_equals_its_source")]


@every_method
def test_the_source_is_stated(axis: str, name: str) -> None:
    source = class_of(option(axis, name)).__dict__.get("source")
    assert isinstance(source, Source), "the class of the option has its own attribute `source`"
    for deviation in source.deviations:
        assert "|" not in deviation
        assert "\n" not in deviation


@every_method
def test_an_oracle_names_the_code_that_was_read(axis: str, name: str) -> None:
    source = class_of(option(axis, name)).source
    docstrings = oracle_docstrings(axis, name)
    assert docstrings, f"tests/{axis}/test_{name}.py has no test_it_equals_its_source"
    wanted = f"{source.code} @ {source.commit[:7]}" if source.code else source.paper.partition(",")[0]
    assert any(wanted in " ".join(text.split()) for text in docstrings), f"no oracle names {wanted}"
