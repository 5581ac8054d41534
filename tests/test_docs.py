"""Documents are up to date, their links lead somewhere, and their commands compose."""

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from docs.generate import find_outdated
from src.settings.read import read_settings
from tests.support import tiny_gpt, tokens

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {"strategies.md", "configuration.md"}
PAGES = [
    ROOT / "README.md",
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in GENERATED),
]
#: Commands with placeholders or flags of Hydra's help, and examples that need the reader's files or show an error.
PLACEHOLDER = re.compile(r"<|\.\.\.|resume=|run\.py --help|residual=(halved|hyperconnn)$")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "site" / "index.html").is_file()


@pytest.mark.slow
def test_generated_pages_equal_what_the_code_says() -> None:
    assert find_outdated() == []


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_relative_links_lead_to_files(page: str) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / page).read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (ROOT / target).exists()] == []


def commands_of(text: str) -> list[str]:
    """Return the commands `python run.py ...` of a page, without comments; continued lines are joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    found = []
    for line in joined.splitlines():
        start = line.find("python run.py")
        if start < 0:
            continue
        inline = start > 0 and line[start - 1] == "`"
        rest = line[start:].partition("`")[0] if inline else re.split(r"\s+#", line[start:])[0]
        found.append(rest.rstrip())
    return found


def list_jobs(command: str) -> list[list[str]]:
    """Return the overrides of one job per value of each swept key, without Hydra's own flags and its plugins' keys.

    Of an interval, which a sweeper searches, the value is its start.
    """
    given = shlex.split(command.replace("$SLURM_ARRAY_TASK_ID", "1"))[2:]
    own = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper")
    words = [word for word in given if word not in ("-m", "--cfg", "job") and not word.lstrip("+").startswith(own)]
    overrides = OverridesParser.create().parse_overrides(words)
    fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
    swept = [o for o in overrides if o.is_sweep_override()]
    jobs = [f"{o.get_key_element()}={value}" for o in swept for value in values_of(o)]
    return [["name=x", *fixed, job] for job in jobs] or [["name=x", *fixed]]


def values_of(swept: Override) -> Iterable[str]:
    """Return the values of a swept key."""
    value = swept.value()
    return [str(value.start)] if isinstance(value, IntervalSweep) else swept.sweep_string_iterator()


COMMANDS = sorted({command for page in PAGES for command in commands_of(page.read_text(encoding="utf-8"))})
COMPLETE = [command for command in COMMANDS if not PLACEHOLDER.search(command)]


def test_documents_have_commands() -> None:
    assert len(COMPLETE) >= 20


@pytest.mark.parametrize("command", COMPLETE)
def test_a_documented_command_composes(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_example(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for overrides in list_jobs(command):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("config", overrides=[*overrides, "trainer.accelerator=cpu"])
        if config.task._target_ == "src.tasks.train.run":
            read_settings(config)


def write_example(folder: Path) -> None:
    """Write the module that docs/add-a-strategy.md shows."""
    page = (ROOT / "docs" / "add-a-strategy.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n# (mystrategies/\w+\.py).*?\n(.*?)```", page, re.DOTALL)
    assert block is not None
    path = folder / block[1]
    path.parent.mkdir()
    path.write_text(block[2], encoding="utf-8")


def test_the_documented_strategy_computes_what_its_docstring_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_example(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    idx = tokens()
    halved = tiny_gpt(strategy={"_target_": "mystrategies.halved.Halved", "scale": 1.0})
    assert torch.equal(halved(idx), tiny_gpt()(idx))
