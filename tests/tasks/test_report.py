"""task=report on the command line, over a sweep that was trained."""

import csv
import json
from pathlib import Path
from statistics import mean

import pytest

from tests.reporting.folders import write_run
from tests.runs import SMALL, error_lines, make_shards, result, run


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("sweep")
    shards = make_shards(cwd / "shards")
    args = [f"data.path={shards}", "residual=vanilla,layerscale", "seed=1,2", "check=off", "hydra.sweep.dir=s"]
    done = run("-m", *SMALL, *args, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "s"


def test_a_sweep_is_compared_by_one_command(sweep: Path, tmp_path: Path) -> None:
    done = run("task=report", f"runs={sweep}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert names >= {"report.md", "report.html", "leaderboard.csv", "comparison.csv", "run.log", ".hydra"}
    with (tmp_path / "r/leaderboard.csv").open() as file:
        board = {row["system"]: row for row in csv.DictReader(file)}
    losses = {n: [result(sweep / f"{i}-{n}")["val_loss"] for i in at] for n, at in ORDER.items()}
    for name, values in losses.items():
        assert float(board[name]["val loss"]) == pytest.approx(mean(values), rel=1e-12)
    expected = mean(b - a for a, b in zip(losses["vanilla"], losses["layerscale"], strict=True))
    assert float(board["layerscale"]["difference"]) == pytest.approx(expected)
    assert "vanilla" in done.stderr
    assert not list(tmp_path.glob("multirun"))


ORDER = {"vanilla": (0, 1), "layerscale": (2, 3)}


def test_written_test_records_have_the_format_of_real_ones(sweep: Path, tmp_path: Path) -> None:
    written = write_run(tmp_path / "written", name="vanilla", seed=1, losses=[3.0, 2.9])
    real = sweep / "0-vanilla"
    assert result(written).keys() <= result(real).keys()
    ours, theirs = ((f / "metrics.jsonl").read_text().splitlines() for f in (written, real))
    assert json.loads(ours[1]).keys() <= json.loads(theirs[-1]).keys()
    assert json.loads(ours[0]).keys() == json.loads(theirs[0]).keys()


def test_user_errors_are_one_line_and_exit_code_2(sweep: Path, tmp_path: Path) -> None:
    for override, words in (
        ("runs=nowhere", "runs=nowhere: no such folder"),
        ("name=x", "runs is missing; give runs=<folder>"),
    ):
        done = run("task=report", override, "hydra.run.dir=r", cwd=tmp_path)
        assert done.returncode == 2
        assert len(error_lines(done)) == 1
        assert words in done.stderr
    done = run("task=report", f"runs={sweep}", "baseline=hyperconn", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 2
    assert "baseline=hyperconn has no completed run; give one of baseline=layerscale, " in done.stderr
