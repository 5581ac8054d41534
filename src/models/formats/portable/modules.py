"""Top-level definitions of a module of this project, and the names that each of them needs.

A definition is a class, a function or a variable with the comments before it. Imports are names too: of a module of
this project, of a name in one, or of something outside it.
"""

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from src.models.formats.parts import PACKAGE
from src.models.formats.portable.fold import bind_references

#: Folder of the package, `src/` in the checkout.
FOLDER = Path(__file__).resolve().parents[3]


class Import(NamedTuple):
    """Import of a module (no `name`) or of a name in it; `module` is without the package where it is this project's."""

    module: str
    name: str | None
    alias: str
    is_own: bool


@dataclass(frozen=True)
class Definition:
    """Top-level statement with the comments before it.

    Args:
        text: its source, comments included.
        names: names that it defines; none for a statement that only has an effect.
        uses: names that it reads, whether of its module or not.
        members: (name, attribute) pairs that it reads, for names of modules.
    """

    text: str
    names: tuple[str, ...]
    uses: frozenset[str]
    members: frozenset[tuple[str, str]]


@dataclass
class Module:
    """Parsed module with its operations bound to their references.

    Args:
        name: dotted name without the package: `residual.mhc`.
        docstring: source of the docstring.
        imports: by the name that the module gives them.
        definitions: in their order.
    """

    name: str
    docstring: str
    imports: dict[str, Import] = field(default_factory=dict)
    definitions: list[Definition] = field(default_factory=list)

    def find(self, name: str) -> Definition | None:
        """Return the definition of a name, or None if the module does not define it."""
        return next((definition for definition in self.definitions if name in definition.names), None)


def find_module(name: str) -> Path | None:
    """Return the file of a module of this project by its name without the package, or None if there is none."""
    path = FOLDER.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@functools.cache
def read_module(name: str) -> Module:
    """Parse a module of this project by its name without the package.

    Raises:
        ValueError: there is no such module, or it has an import that a flat folder cannot hold.
    """
    path = find_module(name)
    if path is None:
        raise ValueError(f"{PACKAGE}.{name} is not a module of this project")
    source = bind_references(path.read_text(encoding="utf-8"))
    body, lines = ast.parse(source).body, source.splitlines(keepends=True)
    docstring = ""
    at = 0
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        at = body[0].end_lineno or 0
        docstring = "".join(lines[:at])
        body = body[1:]
    module = Module(name, docstring)
    for statement in body:
        start, at = at, statement.end_lineno or statement.lineno
        if isinstance(statement, ast.Import | ast.ImportFrom):
            module.imports.update((found.alias, found) for found in _read_imports(statement))
            continue
        names = tuple(_names_defined(statement))
        if names == ("__all__",):
            continue
        text = "".join(lines[start:at])
        nodes = list(ast.walk(statement))
        uses = frozenset(node.id for node in nodes if isinstance(node, ast.Name))
        members = frozenset(
            (node.value.id, node.attr)
            for node in nodes
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        )
        inner = [node for node in nodes if isinstance(node, ast.ImportFrom) and _is_own(node.module)]
        if inner:
            text, uses = "", uses | {_REJECTED}  # fails only where a model needs it
        module.definitions.append(Definition(text, names, uses, members))
    return module


#: Use of a definition that a flat folder cannot hold: one that imports a module of this project when it runs.
_REJECTED = "import in a function"


def require_portable(module: Module, definition: Definition) -> None:
    """Reject a definition that imports modules of this project when it runs.

    Raises:
        ValueError: it does.
    """
    if _REJECTED in definition.uses:
        names = ", ".join(definition.names)
        raise ValueError(f"{PACKAGE}.{module.name}: {names} imports in a function, which an export cannot carry")


def _is_own(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] == PACKAGE


def _read_imports(statement: ast.Import | ast.ImportFrom) -> Iterator[Import]:
    for alias in statement.names:
        known_as = alias.asname or alias.name
        if isinstance(statement, ast.Import):
            yield Import(alias.name, None, known_as, is_own=False)
        elif not _is_own(statement.module):
            yield Import(str(statement.module), alias.name, known_as, is_own=False)
        else:
            module = str(statement.module).partition(".")[2]
            inner = f"{module}.{alias.name}".removeprefix(".")
            if find_module(inner) is not None:
                yield Import(inner, None, known_as, is_own=True)
            else:
                yield Import(module, alias.name, known_as, is_own=True)


def _names_defined(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))
