"""Runs with repeated visits: resumed on either side of their start, on two ranks, logged and drawn."""

import signal
from pathlib import Path

import pytest

from tests.runs import DDP, SMALL, begin, computed, kill_after, make_shards, metrics, result, run, same_weights

RECURS = [
    "recurrence=mini",
    "recurrence.layers=[0,1]",
    "recurrence.start_fraction=null",
    "recurrence.start_step=6",
    "recurrence.ramp_steps=3",
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("whole")
    done = run(*SMALL, *RECURS, f"data.path={shards}", "hydra.run.dir=r", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "r"


@pytest.mark.parametrize("step", [5, 9])
def test_a_run_killed_on_either_side_of_the_start_resumes_bit_for_bit(
    step: int, whole: Path, shards: Path, tmp_path: Path
) -> None:
    process = begin(*SMALL, *RECURS, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert kill_after(step, tmp_path / "r", process, signal.SIGKILL) == -signal.SIGKILL
    done = run("resume=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert computed(tmp_path / "r") == computed(whole)
    assert same_weights(tmp_path / "r", whole)


@pytest.mark.stress  # DDP knows no visits: tests/test_runs.py has the two ranks
def test_two_ranks_give_the_losses_of_one(whole: Path, shards: Path, tmp_path: Path) -> None:
    done = run(*SMALL, *RECURS, *DDP, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for two, one in zip(metrics(tmp_path / "r"), metrics(whole), strict=True):
        assert two["train/loss"] == pytest.approx(one["train/loss"], rel=2e-6)


def test_the_order_of_visits_is_logged_and_drawn(whole: Path) -> None:
    log = (whole / "run.log").read_text()
    assert "visits to layers: 0 1 [0 1]; in brackets from step 6 on, with MLPs of their own" in log
    assert (whole / "figures/visits.png").stat().st_size > 1000


def test_flops_are_the_mean_over_the_run(whole: Path, shards: Path, tmp_path: Path) -> None:
    values = []
    for visits in (
        ["recurrence=none"],
        ["recurrence=mini", "recurrence.start_fraction=null", "recurrence.start_step=0"],
    ):
        done = run(
            *(*SMALL, *visits, f"data.path={shards}", "trainer.max_steps=1", f"hydra.run.dir={len(values)}"),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        values.append(result(tmp_path / str(len(values)))["flops_per_token"])
    assert result(whole)["flops_per_token"] == sum(values) / 2
