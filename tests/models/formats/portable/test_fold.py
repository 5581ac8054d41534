"""Source with every operation bound to its reference."""

import ast
from textwrap import dedent

import pytest

from src.models.formats.portable.fold import bind_references
from src.models.formats.portable.modules import FOLDER


def bound(source: str) -> str:
    return bind_references(dedent(source)).strip()


def test_the_branch_of_the_reference_remains_with_its_comments() -> None:
    source = """
        def read(x, sizes):
            \"\"\"Return y.\"\"\"
            width = sizes[0]
            backend = OPERATION.backend_for(x, width=width)
            if backend == "triton" and width > 4:
                return by_triton(x)
            # The definition.
            if backend == "reference":
                y = x + 1  # one more
                return y
            return by_cpp(x)
    """
    expected = '''
        def read(x, sizes):
            """Return y."""
            # The definition.
            y = x + 1  # one more
            return y
    '''
    assert bound(source) == dedent(expected).strip()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('x = a if s.backend != "cpp" else b', "x = a"),
        ('x = f(s.backend == "reference" or slow(s))', "x = f(True)"),
        ('x = s.backend == "reference" and ready(s)', "x = ready(s)"),
        ("x = s.kernels is not None", "x = False"),
        ("def f(n: Annotated[int, Field(ge=1)] | None): ...", "def f(n: int | None): ..."),
        ('if backend == "cpp":\n    a()\nelif ready:\n    b()', "if ready:\n    b()"),
        ('if backend == "cpp":\n    a()\nelse:\n    b()', "b()"),
        ('x = other == "cpp"', 'x = other == "cpp"'),
        ("x = backend == name", "x = backend == name"),
    ],
)
def test_an_expression_on_a_backend_has_its_value(source: str, expected: str) -> None:
    assert bound(source) == expected


def test_a_variable_that_nothing_reads_goes_unless_its_value_has_an_effect() -> None:
    source = """
        def f(x):
            n = len(x)
            m = draw(x)
            return x
    """
    assert bound(source) == "def f(x):\n    m = draw(x)\n    return x"


def test_source_without_operations_keeps_its_text() -> None:
    source = (FOLDER / "residual/x0_blend.py").read_text().replace("Annotated[", "Other[")
    assert bind_references(source) == source


@pytest.mark.parametrize("name", ["depth_attention/__init__.py", "hyper_streams/dhc.py", "cross_entropy/chunked.py"])
def test_nothing_asks_for_a_backend_any_more(name: str) -> None:
    source = (FOLDER / "kernels" / name).read_text()
    assert ".backend_for(" in source
    assert ".backend_for(" not in bind_references(source)
    ast.parse(bind_references(source))
