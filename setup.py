"""Build of the package `reslab`: the rooms of models, from `src/` with `src` in their imports replaced by `reslab`.

The application runs from a checkout, where the import name is `src`; a package of that name would collide with others.
The wheel therefore holds a copy whose import statements are rewritten while it is built, and the option files of models
beside it. Everything else (tasks, training, data, evaluation) stays a checkout.
"""

import re
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py

#: Rooms of the package, and the configuration groups that describe their options.
ROOMS = ("kernels", "models", "residual", "norm", "embedding", "recurrence")
GROUPS = ("model", "residual", "norm", "embedding", "recurrence", "mlp")
IMPORT = re.compile(r"^(\s*(?:from|import) )src\b", re.MULTILINE)


def find_packages() -> list[str]:
    """Return the names of the packages below `src/`; of an incomplete checkout, as in a Docker layer, those there are."""
    folders = {path.parent for room in ROOMS for kind in ("*.py", "*.h") for path in Path("src", room).rglob(kind)}
    return ["reslab", *(".".join(("reslab", *folder.parts[1:])) for folder in sorted(folders))]


class BuildPackage(build_py):
    """Build with renamed imports and the option files."""

    def build_module(self, module: Any, module_file: Any, package: Any) -> Any:  # as setuptools has them
        """Copy a module with its imports renamed."""
        written, copied = super().build_module(module, module_file, package)
        path = Path(written)
        path.write_text(IMPORT.sub(r"\1reslab", path.read_text(encoding="utf-8")), encoding="utf-8")
        return written, copied

    def run(self) -> None:
        """Build the modules, then copy the option files."""
        super().run()
        for group in GROUPS:
            folder = Path(self.build_lib, "reslab", "conf", group)
            self.mkpath(str(folder))
            for path in sorted(Path("conf", group).glob("*.yaml")):
                self.copy_file(str(path), str(folder / path.name))


setup(
    packages=find_packages(),
    package_dir={"reslab": "src"},
    package_data={"": ["*.cpp", "*.h"]},
    cmdclass={"build_py": BuildPackage},
)
