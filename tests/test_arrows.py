"""Imports between the rooms of src point one way: from a level to the levels before it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Rooms by level. A room imports itself and the levels before its own; rooms of one level do not know each other.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("bounds", "errors", "files", "source"),
    ("kernels", "launch"),
    ("residual", "norm", "embedding", "recurrence", "datamodules"),
    ("models",),
    ("analysis", "evaluation", "reporting"),
    ("callbacks", "study"),
    ("settings",),
    ("checks",),
    ("training",),
    ("bench",),
    ("tasks",),
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
#: Rooms of which others than the tasks know the contract only: `src/<axis>/base.py`.
AXES = {"residual", "norm", "embedding", "recurrence"}
KNOW_METHODS = AXES | {"settings", "training", "bench", "tasks"}
#: Rooms that may import Hydra.
HYDRA_ROOMS = {"launch", "settings", "tasks"}


def imports(source: str) -> list[tuple[str, int]]:
    """Every module that a file imports, with the number of leading dots."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(f"{node.module}.{alias.name}", node.level) for alias in node.names]
    return found


def is_allowed(room: str, name: str) -> bool:
    """Whether a file in `room` may import the module or attribute `name`."""
    top, *rest = name.split(".")
    if top == "hydra":
        return room in HYDRA_ROOMS
    if top in ("benchmarks", "tests"):
        return False
    if top != "src":
        return True
    target = rest[0]
    if target == room or target == "__version__":
        return True
    if target in AXES and room not in KNOW_METHODS and rest[1] != "base":
        return False
    return LEVEL_OF[target] < LEVEL_OF[room]


def faults(path: str, source: str) -> list[str]:
    """Imports in a file of src that point the wrong way."""
    room = path.removeprefix("src/").split("/")[0].removesuffix(".py")
    wrong = []
    for name, level in imports(source):
        if level:
            wrong.append(f"{path}: relative import of {name}")
        elif not is_allowed(room, name):
            wrong.append(f"{path}: imports {name}")
    return wrong


FILES = {p.relative_to(ROOT).as_posix(): p.read_text() for p in sorted((ROOT / "src").rglob("*.py"))}


def test_imports_follow_the_arrows() -> None:
    assert [fault for path, source in FILES.items() for fault in faults(path, source)] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("src/models/gpt.py", "from src.residual.vanilla import Vanilla"),
        ("src/models/gpt.py", "import src.callbacks.run_record"),
        ("src/residual/x0_blend.py", "from src.models.gpt import GPT"),
        ("src/residual/x0_blend.py", "from src.norm.rmsnorm import RMSNorm"),
        ("src/residual/x0_blend.py", "from .base import Site"),
        ("src/kernels/fused_blend.py", "from src.residual.base import Site"),
        ("src/kernels/fused_blend.py", "from src.launch.job import Job"),
        ("src/datamodules/fineweb.py", "from src.models.config import GPTConfig"),
        ("src/reporting/figures.py", "from src.callbacks.run_record import read_metrics"),
        ("src/evaluation/suite.py", "from src.callbacks.run_record import RunRecord"),
        ("src/callbacks/run_record.py", "from hydra.utils import instantiate"),
        ("src/training/session.py", "from src.tasks.train import run"),
        ("src/bench/timing.py", "from benchmarks.suites import SUITES"),
        ("src/files.py", "from src.models.gpt import GPT"),
    ],
)
def test_a_planted_import_is_caught(path: str, source: str) -> None:
    assert len(faults(path, source)) == 1


def test_the_front_door_is_short() -> None:
    assert len((ROOT / "run.py").read_text().splitlines()) <= 80


def test_files_stay_one_thing() -> None:
    lines = {path: len(source.splitlines()) for path, source in FILES.items()}
    assert {path: n for path, n in lines.items() if n > (500 if path.startswith("src/kernels/") else 300)} == {}
