"""Flat Python files with the definitions that one model needs, beside its weights.

Reachability starts at the classes that transformers builds and at the classes that the model's configuration names, and
follows the names that each definition reads. Files, their order and their text depend on this project's source alone.
"""

import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from src import __version__
from src.models.formats.portable.modules import Import, find_module, read_module, require_portable

#: Classes by the names under which transformers asks for them, and the files that hold them.
AUTO_MAP = {
    "AutoConfig": "configuration_reslab.ReslabConfig",
    "AutoModelForCausalLM": "modeling_reslab.ReslabForCausalLM",
}
PORTABLE = "models.formats.portable"
FILES = {f"{PORTABLE}.configuration": "configuration_reslab", f"{PORTABLE}.modeling": "modeling_reslab"}
ENTRIES = ((f"{PORTABLE}.configuration", "ReslabConfig"), (f"{PORTABLE}.modeling", "ReslabForCausalLM"))
#: Module that a table of the model's own classes replaces.
PARTS = "models.formats.parts"
HEADER = """\
# Copyright the reslab authors. Licensed under the Apache License, Version 2.0.
# From reslab {version}, {source}:
# what this model needs, with the PyTorch reference of every operation.
"""
WIDTH = 120


def write_code(folder: Path, rooms: dict[str, dict[str, Any]]) -> None:
    """Write the code that a model needs into an existing folder.

    Args:
        folder: an exported folder.
        rooms: for each room a `_target_` and the keys of that class.

    Raises:
        ValueError: a class is not one of this project's.
    """
    for name, text in build_files(find_targets(rooms)).items():
        (folder / name).write_text(text, encoding="utf-8")


def find_targets(tree: Any) -> list[str]:  # a configuration
    """Return all classes that a configuration names, `src.<room>.<module>.<Class>`, sorted."""
    if not isinstance(tree, dict):
        return []
    own = [str(tree["_target_"])] if "_target_" in tree else []
    return sorted({*own, *(name for value in tree.values() for name in find_targets(value))})


def build_files(targets: Iterable[str]) -> dict[str, str]:
    """Return the files of an export by name, for the classes that its configuration names."""
    targets = sorted(targets)
    parts = [target.partition(".")[2].rpartition(".") for target in targets]
    bundle = _Bundle([*ENTRIES, *((module, name) for module, _, name in parts)])
    files = {f"{_file_name(name)}.py": bundle.write(name) for name in sorted(bundle.names) if name != PARTS}
    files[f"{_file_name(PARTS)}.py"] = _write_parts(targets)
    # Two folders of one name in one process: transformers keeps the model class of a configuration class, and takes
    # classes of equal files for one.
    digest = hashlib.sha256("".join(files[name] for name in sorted(files)).encode()).hexdigest()
    first = f"{FILES[ENTRIES[0][0]]}.py"
    files[first] = f"# sha256 of this model's code: {digest}\n{files[first]}"
    return files


class _Bundle:
    """Definitions that are reached from some names.

    Args:
        roots: (module, name) pairs.
    """

    def __init__(self, roots: Iterable[tuple[str, str]]) -> None:
        self.names: dict[str, set[str]] = defaultdict(set)  # by module, those that it defines or imports
        self.imported_whole: set[str] = set()  # modules that others import by their own name
        self._waiting = list(roots)
        while self._waiting:
            self._reach(*self._waiting.pop())

    def _reach(self, module_name: str, name: str) -> None:
        if name in self.names[module_name]:
            return
        self.names[module_name].add(name)
        if module_name == PARTS:
            return
        module = read_module(module_name)
        definitions = [found for found in (module.find(name),) if found is not None]
        if len(self.names[module_name]) == 1:  # the module's first name: statements that only have an effect run too
            definitions += [definition for definition in module.definitions if not definition.names]
        if not definitions and name not in module.imports:
            raise ValueError(f"{module_name} neither defines nor imports {name}")
        if name in module.imports:
            self._reach_import(module.imports[name])
        for definition in definitions:
            require_portable(module, definition)
            self._waiting += [
                (module_name, use) for use in definition.uses if use in module.imports or module.find(use)
            ]
            for alias, attribute in definition.members:
                found = module.imports.get(alias)
                if found is not None and found.is_own and found.name is None:
                    self._waiting.append((found.module, attribute))

    def _reach_import(self, found: Import) -> None:
        if not found.is_own:
            return
        if found.name is None:
            self.imported_whole.add(found.module)
            self.names[found.module]  # the file exists even if nothing of it is read
        else:
            self._waiting.append((found.module, found.name))

    def write(self, name: str) -> str:
        """Return the file of a module: header, docstring, imports and the definitions that are reached."""
        module, reached = read_module(name), self.names[name]
        path = find_module(name)
        assert path is not None
        source = f"src/{'/'.join(name.split('.'))}{'/__init__' if path.name == '__init__.py' else ''}.py"
        imports = dict(module.imports)
        definitions = [found.text for found in module.definitions if not found.names or reached & {*found.names}]
        if name in self.imported_whole:
            own_name = name.rpartition(".")[2]
            if own_name in reached:
                raise ValueError(f"{name} has a name like its own, {own_name}, so that an export cannot import it")
            imports["sys"] = Import("sys", None, "sys", is_own=False)
            reached = reached | {"sys"}
            definitions.append(
                f"\n\n#: This module, for imports of it as a whole.\n{own_name} = sys.modules[__name__]\n"
            )
        text = "".join(
            [
                HEADER.format(version=__version__, source=source),
                module.docstring,
                *_write_imports(imports, reached),
                *definitions,
            ]
        )
        return text.rstrip() + "\n"


def _write_imports(imports: dict[str, Import], reached: set[str]) -> list[str]:
    """Return the import statements for the names that are reached: Python's own, other packages', this project's."""
    statements: dict[tuple[int, str], list[str]] = defaultdict(list)
    for alias, found in imports.items():
        if alias not in reached:
            continue
        level = 2 if found.is_own else int(found.module.partition(".")[0] not in sys.stdlib_module_names)
        if found.is_own:
            own_name = found.name or found.module.rpartition(".")[2]
            statements[level, f"from .{_file_name(found.module)} import "].append(_rename(own_name, alias))
        elif found.name is None:
            statements[level, f"import {_rename(found.module, alias)}"] = []
        else:
            statements[level, f"from {found.module} import "].append(_rename(found.name, alias))
    lines = []
    level = -1
    # As ruff sorts them: groups by origin with an empty line before each, `import` before `from`.
    for key in sorted(statements, key=lambda key: (key[0], key[1].startswith("from"), key[1])):
        lines += ["\n"] if key[0] != level else []
        level, items = key[0], sorted(statements[key])
        line = f"{key[1]}{', '.join(items)}\n"
        if len(line) > WIDTH:
            line = f"{key[1]}(\n{''.join(f'    {item},{chr(10)}' for item in items)})\n"
        lines.append(line)
    return lines


def _write_parts(targets: list[str]) -> str:
    """Return the module that finds the classes of one model."""
    lines = [HEADER.format(version=__version__, source=f"src/{PARTS.replace('.', '/')}.py")]
    lines += ['"""Classes of the parts of this model by the names that its configuration gives them."""\n\n']
    places = [target.partition(".")[2].rpartition(".") for target in targets]
    lines += [f"from .{_file_name(module)} import {name}\n" for module, _, name in places]
    lines += ["\nCLASSES = {\n", *(f'    "{target}": {target.rpartition(".")[2]},\n' for target in targets), "}\n\n\n"]
    lines += ["def find_class(room: str, target: str) -> object:\n"]
    lines += ['    """Return the class that `target` names, or None if this model has no such part."""\n']
    lines += ["    return CLASSES.get(target)\n"]
    return "".join(lines)


def _file_name(module: str) -> str:
    return FILES.get(module, module.replace(".", "_"))


def _rename(name: str, alias: str) -> str:
    return name if name == alias else f"{name} as {alias}"
