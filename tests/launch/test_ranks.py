"""A rank that dies, hangs, fails or drifts, from outside: the others end soon and name it."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faulty import faulty
from tests.robust.support import LONGER, no_process_of, rank_pid, saved_step, wait_for_row
from tests.runs import make_shards, result, run, start

TWO = ["trainer.devices=2", "safety.rank_timeout_s=15"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.mark.parametrize("signum", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.stress)])
def test_a_rank_that_is_killed_or_stopped_ends_the_job_soon(
    signum: signal.Signals, shards: Path, tmp_path: Path
) -> None:
    process = start(*LONGER, *TWO, f"data.path={shards}", "trainer.max_steps=100000", "hydra.run.dir=r", cwd=tmp_path)
    wait_for_row(9, tmp_path / "r", process)
    os.kill(rank_pid(tmp_path / "r"), signum)
    _, words = process.communicate(timeout=100)
    assert process.returncode == 1
    expected = "rank 1 was killed by SIGKILL" if signum == signal.SIGKILL else "rank 1 did not answer in time"
    assert expected in words.split("failed:", 1)[1].splitlines()[0]
    assert result(tmp_path / "r")["status"] == "failed"
    assert expected in result(tmp_path / "r")["reason"]
    assert saved_step(tmp_path / "r/checkpoints/last.ckpt") >= 8
    assert no_process_of(tmp_path)


@pytest.mark.stress
def test_rank_0_stopped_ends_the_job_soon(shards: Path, tmp_path: Path) -> None:
    process = start(*LONGER, *TWO, f"data.path={shards}", "trainer.max_steps=100000", "hydra.run.dir=r", cwd=tmp_path)
    wait_for_row(9, tmp_path / "r", process)
    process.send_signal(signal.SIGSTOP)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert no_process_of(tmp_path)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.stress), 1])
def test_the_rank_that_failed_first_is_reported(rank: int, shards: Path, tmp_path: Path) -> None:
    broken = faulty("raise", 9, tmp_path, rank=rank)
    done = run(*LONGER, *TWO, *broken, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 1
    first = done.stderr.split("failed:", 1)[1].splitlines()[0]
    assert "planted error" in first
    assert ("rank 1 failed" in first) == (rank == 1)
    assert no_process_of(tmp_path)


def test_ranks_that_drift_apart_stop_and_save_nothing_of_it(shards: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    drift = faulty("drift", 9, tmp_path, rank=1)
    done = run(*LONGER, *TWO, *drift, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 1
    assert "step 12: rank 1 holds other weights than rank 0" in result(tmp_path / "r")["reason"]
    assert saved_step(tmp_path / "r/checkpoints/last.ckpt") == 8
    assert time.monotonic() - began < 100
