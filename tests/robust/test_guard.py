"""Runs that diverge: where they stop, what they leave, and where a rollback returns to.

Covers `src/training/rollback.py` too.
"""

import shutil
import signal
from pathlib import Path

import pytest

from tests.faulty import faulty
from tests.robust.support import LONGER, saved_step
from tests.runs import begin, computed, kill_after, make_shards, metrics, result, run, same_weights


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_logged_or_saved(shards: Path, tmp_path: Path) -> None:
    done = run(*LONGER, *faulty("poison", 17, tmp_path), f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    stated = result(tmp_path / "r")
    assert stated["status"] == "diverged"
    assert stated["reason"].startswith("step 18: loss nan")
    assert stated["steps"] == 17
    assert "val_loss" not in stated
    assert [row["step"] for row in metrics(tmp_path / "r")] == list(range(1, 18))
    assert saved_step(tmp_path / "r/checkpoints/last.ckpt") == 16


def test_a_spike_that_lasts_stops_the_run_and_one_that_passes_does_not(shards: Path, tmp_path: Path) -> None:
    place = [f"data.path={shards}", "guard.spike_nats=0.02", "guard.patience_steps=3"]
    (tmp_path / "a").mkdir()
    long = faulty("spike", 30, tmp_path / "a", lasts=9)
    done = run(*LONGER, *long, *place, "hydra.run.dir=a", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "step 31: loss" in result(tmp_path / "a")["reason"]
    (tmp_path / "b").mkdir()
    short = faulty("spike", 30, tmp_path / "b", lasts=2)
    done = run(*LONGER, *short, *place, "hydra.run.dir=b", "optimizer.grad_clip=1e-6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_rollback_skips_the_data_and_survives_a_kill_bitwise(shards: Path, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    keys = [*LONGER, f"data.path={shards}", "guard=rollback"]
    done = run(*keys, *faulty("poison", 21, tmp_path), "hydra.run.dir=whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stated = result(tmp_path / "whole")
    assert stated["status"] == "completed"
    assert [(event["at"], event["to"]) for event in stated["rollbacks"]] == [(22, 20)]
    assert [row["step"] for row in metrics(tmp_path / "whole")] == list(range(1, 61))
    (tmp_path / "done.0").unlink()
    process = begin(*keys, *faulty("poison", 21, tmp_path), "hydra.run.dir=killed", cwd=tmp_path)
    assert kill_after(41, tmp_path / "killed", process, signal.SIGKILL) == -signal.SIGKILL
    done = run("resume=killed", "trusted_targets=[tests]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert computed(tmp_path / "killed") == computed(tmp_path / "whole")
    assert same_weights(tmp_path / "killed", tmp_path / "whole")
    assert result(tmp_path / "killed")["rollbacks"] == stated["rollbacks"]


@pytest.mark.stress
def test_a_run_that_always_diverges_stops_after_its_rollbacks(shards: Path, tmp_path: Path) -> None:
    always = faulty("poison", 9, tmp_path, times=99)
    done = run(
        *LONGER,
        *always,
        f"data.path={shards}",
        "guard=rollback",
        "guard.rollbacks=2",
        "hydra.run.dir=r",
        cwd=tmp_path,
    )
    assert done.returncode == 3, done.stderr
    assert len(result(tmp_path / "r")["rollbacks"]) == 2
    assert saved_step(tmp_path / "r/checkpoints/last.ckpt") == 8
    shutil.rmtree(tmp_path / "r")


@pytest.mark.stress
def test_two_ranks_roll_back_together(shards: Path, tmp_path: Path) -> None:
    done = run(
        *LONGER,
        *faulty("poison", 21, tmp_path, rank=1),
        f"data.path={shards}",
        "guard=rollback",
        "trainer.devices=2",
        "trainer.max_steps=28",
        "hydra.run.dir=r",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert [(event["at"], event["to"]) for event in result(tmp_path / "r")["rollbacks"]] == [(22, 20)]
    assert [row["step"] for row in metrics(tmp_path / "r")] == list(range(1, 29))
