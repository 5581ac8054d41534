"""Source of a module with every operation bound to its PyTorch reference.

An operation asks its dispatcher for a backend (`backend_for`); in an export the answer is always "reference". This module
writes that answer into the source and drops the code that can then not run: branches, statements after a `return`,
variables that nothing reads. Types with bounds (`Annotated[float, Field(gt=0)]`) lose the bounds, which need pydantic.
Everything else keeps its text, comments included.

The rules rely on names that the kernels use for nothing else: `backend` is a backend's name, `kernels` are loaded C++
functions (None under the reference).
"""

import ast
from collections.abc import Iterator, Sequence

BACKENDS = ("reference", "cpp", "triton")
#: Methods of dispatchers, and what they return where no kernel exists.
ANSWERS: dict[str, str | bool] = {"backend_for": "reference", "is_applicable": False}
#: Functions without effects, whose calls go with the variables that they set.
PURE = ("len", "read_case")
MAX_ROUNDS = 10

Function = ast.FunctionDef | ast.AsyncFunctionDef


def bind_references(source: str) -> str:
    """Return the source with all operations bound to their references and without the code that no longer runs.

    Raises:
        ValueError: the code still changes after many rounds.
    """
    for _ in range(MAX_ROUNDS):
        before, source = source, _drop_dead_code(_fold_expressions(source))
        if source == before:
            return source
    raise ValueError(f"code still changes after {MAX_ROUNDS} rounds")


# ---- expressions


class _Folder(ast.NodeTransformer):
    """Replaces expressions whose value is known by constants."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr in ANSWERS:
            return ast.Constant(ANSWERS[node.func.attr])
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        (operator, *more), right = node.ops, node.comparators[0]
        if more or not isinstance(right, ast.Constant):
            return node
        equal: bool | None = None
        if right.value in BACKENDS and (_is_named(node.left, "backend") or isinstance(node.left, ast.Constant)):
            left = node.left.value if isinstance(node.left, ast.Constant) else "reference"
            equal = left == right.value
        elif right.value is None and isinstance(node.left, ast.Attribute) and node.left.attr == "kernels":
            equal = True
        if equal is None:
            return node
        return ast.Constant(equal if isinstance(operator, ast.Eq | ast.Is) else not equal)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        neutral = isinstance(node.op, ast.And)
        values = [value for value in node.values if not _is_constant(value, neutral)]
        if any(_is_constant(value, not neutral) for value in values):
            return ast.Constant(not neutral)
        if not values:
            return ast.Constant(neutral)
        return values[0] if len(values) == 1 else ast.BoolOp(node.op, values)

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        self.generic_visit(node)
        if _is_constant(node.test, True) or _is_constant(node.test, False):
            return node.body if _is_constant(node.test, True) else node.orelse
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        if _is_named(node.value, "Annotated") and isinstance(node.slice, ast.Tuple):
            return node.slice.elts[0]
        return node


def _fold_expressions(source: str) -> str:
    """Return the source with the text of changed expressions replaced; all other text stays."""
    tree, lines = ast.parse(source), source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    data = source.encode()
    edits = []
    for node in _outermost_expressions(tree):
        before = ast.dump(node)
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        after = _Folder().visit(node)
        if ast.dump(after) != before:
            edits.append((start, end, _write(after).encode()))
    for start, end, text in sorted(edits, reverse=True):
        data = data[:start] + text + data[end:]
    return data.decode()


def _write(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if '"' in text else text.replace("'", '"')


def _outermost_expressions(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions that stand directly in statements."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.expr):
            yield child
        else:
            yield from _outermost_expressions(child)


def _is_named(node: ast.expr, name: str) -> bool:
    return (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name)


def _is_constant(node: ast.expr, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


# ---- statements


def _drop_dead_code(source: str) -> str:
    lines = source.splitlines(keepends=True)
    return "".join(_emit(ast.parse(source).body, lines, 0, set()))


def _emit(body: Sequence[ast.stmt], lines: list[str], at: int, dead: set[str]) -> list[str]:
    """Return the lines of statements without dead code.

    Args:
        body: consecutive statements.
        lines: those of the whole source.
        at: index of the first line after what precedes `body`: comments before a statement belong to it.
        dead: variables that nothing reads.
    """
    out: list[str] = []
    for statement in body:
        first, end = first_line(statement) - 1, statement.end_lineno or statement.lineno
        text = lines[at:end]
        if isinstance(statement, ast.If) and isinstance(statement.test, ast.Constant):
            kept = statement.body if statement.test.value else statement.orelse
            if kept:
                inner = _emit(kept, lines, first_line(kept[0]) - 1, dead)
                depth = kept[0].col_offset - statement.col_offset
                inner = [line[depth:] if line.strip() else line for line in inner]
                inner[0] = inner[0].replace("elif ", "if ", 1) if depth == 0 else inner[0]
                out += [*lines[at:first], *inner]
            if kept and isinstance(kept[-1], ast.Return | ast.Raise):
                return out
        elif isinstance(statement, Function | ast.ClassDef | ast.If | ast.For | ast.With | ast.While):
            out += _emit_compound(statement, lines, at, dead)
        elif not _is_dead(statement, dead):
            out += text
        at = end
        if isinstance(statement, ast.Return | ast.Raise):
            return out
    return out


def _emit_compound(statement: ast.stmt, lines: list[str], at: int, dead: set[str]) -> list[str]:
    """Return the lines of a statement with a body, which is emitted by `_emit`."""
    assert isinstance(statement, Function | ast.ClassDef | ast.If | ast.For | ast.With | ast.While)
    body = statement.body
    if body[0].lineno == statement.lineno:  # all in one line
        return lines[at : statement.end_lineno]
    if isinstance(statement, Function):
        dead = {name for name, uses in _count_variables(statement).items() if not uses}
    elif isinstance(statement, ast.ClassDef):
        dead = {"kernels"}  # the field of a state
    start = first_line(body[0]) - 1
    last = body[-1].end_lineno or body[-1].lineno
    out = lines[at:start] + _emit(body, lines, start, dead)
    if getattr(statement, "orelse", None):  # else and elif
        out += lines[last : statement.end_lineno]
    return out


def _is_dead(statement: ast.stmt, dead: set[str]) -> bool:
    """Return whether a statement only sets variables that nothing reads, without other effects."""
    if isinstance(statement, ast.AnnAssign):
        targets: list[ast.expr] = [statement.target]
    elif isinstance(statement, ast.Assign):
        targets = statement.targets
    else:
        return False
    if not all(isinstance(target, ast.Name) and target.id in dead for target in targets):
        return False
    calls = (node for node in ast.walk(statement) if isinstance(node, ast.Call))
    return all(any(_is_named(call.func, name) for name in PURE) for call in calls)


def _count_variables(function: ast.AST) -> dict[str, int]:
    """Return how often each variable that a function assigns is read in it."""
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    counts = {node.id: 0 for node in names if isinstance(node.ctx, ast.Store)}
    for node in names:
        if isinstance(node.ctx, ast.Load) and node.id in counts:
            counts[node.id] += 1
    return counts


def first_line(statement: ast.stmt) -> int:
    """Return the number of a statement's first line, that of its first decorator if it has one."""
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])
