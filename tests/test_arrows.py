"""The arrows between the rooms, by the imports that are written."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONTRACTS = {f"src.{room}.base" for room in ("residual", "norm", "embedding", "recurrence")}
LEAVES = {
    "src.artefacts",
    "src.cpu_products",
    "src.gpu_kernels",
    "src.lock",
    "src.machine_code",
    "src.mistakes",
    "src.native",
    "src.operators",
    "src.signals",
    "src.typed",
}
PLUMBING = {"src.launch", "src.overrides", "src.ranks"}

#: What each room may import of src, besides itself and the leaves.
ALLOWED: dict[str, set[str]] = {
    "artefacts": set(),
    "cpu_products": set(),
    "gpu_kernels": set(),
    "lock": set(),
    "machine_code": set(),
    "mistakes": set(),
    "native": set(),
    "operators": set(),
    "signals": set(),
    "typed": set(),
    "overrides": set(),
    "ranks": {"src.launch"},
    "early_end": {"src.overrides"},
    "launchers": set(),
    "outcomes": set(),
    "launch": {"src.overrides", "src.early_end", "src.launchers", "src.outcomes"},
    "tasks": PLUMBING
    | {f"src.{r}" for r in ("callbacks", "checks", "evaluation", "reporting", "models", "datamodules")}
    | {f"src.{r}" for r in ("residual", "norm", "embedding")},
    "checks": {"src.models", "src.residual.base"},
    "callbacks": {"src.models", "src.datamodules", "src.evaluation", "src.reporting"},  # pictures while it runs
    "evaluation": {"src.models", "src.datamodules"},
    "models": CONTRACTS,
    "residual": set(),
    "norm": set(),
    "embedding": set(),
    "recurrence": set(),
    "datamodules": set(),
    "reporting": set(),
}
HYDRA_ROOMS = {"tasks", "launch"}


def imports(source: str) -> list[tuple[str, int]]:
    """Every module that a file imports, with the number of leading dots."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(f"{node.module}.{alias.name}", node.level) for alias in node.names]
    return found


def faults(path: str, source: str) -> list[str]:
    """What in a file of src points the wrong way."""
    room = path.removeprefix("src/").split("/")[0].removesuffix(".py")
    wrong = []
    for name, level in imports(source):
        if level:
            wrong.append(f"{path}: relative import of {name}")
        if name.startswith("hydra.") and room not in HYDRA_ROOMS:
            wrong.append(f"{path}: imports {name}")
        if not name.startswith("src."):
            continue
        allowed = ALLOWED[room] | LEAVES | {f"src.{room}"}
        if not any(name == a or name.startswith(f"{a}.") for a in allowed):
            wrong.append(f"{path}: imports {name}")
    return wrong


FILES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "src").rglob("*.py"))


@pytest.mark.parametrize("path", FILES)
def test_imports_follow_the_arrows(path: str) -> None:
    assert faults(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("src/models/gpt.py", "from src.residual.vanilla import Vanilla"),
        ("src/models/gpt.py", "import src.callbacks.record"),
        ("src/residual/x0_blend.py", "from src.models.gpt import GPT"),
        ("src/residual/x0_blend.py", "from .base import Site"),
        ("src/datamodules/shards.py", "from src.models.config import GPTConfig"),
        ("src/reporting/figures.py", "from src.callbacks.record import read_metrics"),
        ("src/evaluation/suite.py", "from src.callbacks.record import RunRecord"),
        ("src/callbacks/record.py", "from hydra.utils import instantiate"),
        ("src/artefacts.py", "from src.models.gpt import GPT"),
    ],
)
def test_a_planted_import_is_caught(path: str, source: str) -> None:
    assert len(faults(path, source)) == 1


def test_the_front_door_is_short() -> None:
    assert len((ROOT / "run.py").read_text().splitlines()) <= 80


@pytest.mark.parametrize("path", FILES)
def test_files_stay_one_thing(path: str) -> None:
    n = len((ROOT / path).read_text().splitlines())
    assert n <= 250
