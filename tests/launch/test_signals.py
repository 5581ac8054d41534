"""Signals and time limits, from outside: exit codes, checkpoints, and bitwise resume."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.launch.stop_request import REPEATED_S
from tests.faulty import faulty
from tests.robust.support import FAULTS, LONGER, no_process_of, rank_pid, saved_step, wait_for_row
from tests.runs import ROOT, begin, computed, kill_after, make_shards, result, run, same_weights

TWO = ["trainer.devices=2", "safety.rank_timeout_s=60"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.mark.stress  # a SIGTERM by another number
def test_sigusr1_is_a_sigterm(shards: Path, tmp_path: Path) -> None:
    whole = run(*LONGER, f"data.path={shards}", "hydra.run.dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    process = begin(*LONGER, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert kill_after(13, tmp_path / "r", process, signal.SIGUSR1) == 143
    stated = result(tmp_path / "r")
    assert (stated["status"], stated["reason"]) == ("interrupted", "stopped by SIGUSR1")
    assert saved_step(tmp_path / "r/checkpoints/last.ckpt") == stated["steps"] >= 13
    done = run("resume=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert computed(tmp_path / "r") == computed(tmp_path / "whole")
    assert same_weights(tmp_path / "r", tmp_path / "whole")


@pytest.mark.parametrize(
    ("rank", "signum"),
    [
        (1, signal.SIGTERM),
        pytest.param(0, signal.SIGTERM, marks=pytest.mark.stress),
        pytest.param(1, signal.SIGINT, marks=pytest.mark.stress),
    ],
)
def test_a_signal_to_one_rank_stops_both_after_the_same_step(
    rank: int, signum: signal.Signals, shards: Path, tmp_path: Path
) -> None:
    keys = [*LONGER, *TWO, "trainer.max_steps=5000", f"data.path={shards}", "hydra.run.dir=r"]
    process = begin(*keys, cwd=tmp_path)
    wait_for_row(9, tmp_path / "r", process)
    target = process.pid if rank == 0 else rank_pid(tmp_path / "r")
    os.kill(target, signum)
    process.communicate(timeout=120)
    assert process.returncode == (130 if signum == signal.SIGINT else 143)
    stated = result(tmp_path / "r")
    assert stated["status"] == "interrupted"
    assert saved_step(tmp_path / "r/checkpoints/last.ckpt") == stated["steps"] >= 9
    assert no_process_of(tmp_path)


def test_a_second_signal_and_the_end_of_the_grace_period_exit_at_once(shards: Path, tmp_path: Path) -> None:
    stuck = [*LONGER, *faulty("hang", 9, tmp_path, times=9), f"data.path={shards}"]
    process = begin(*stuck, "hydra.run.dir=a", cwd=tmp_path)
    wait_for_row(9, tmp_path / "a", process)
    time.sleep(1.0)  # until it hangs in the next step
    process.send_signal(signal.SIGTERM)
    time.sleep(REPEATED_S + 0.5)
    assert process.poll() is None  # it waits for the end of the step
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 143
    process = begin(*stuck, "hydra.run.dir=b", "safety.grace_s=2", cwd=tmp_path)
    wait_for_row(9, tmp_path / "b", process)
    time.sleep(1.0)  # until it hangs in the next step
    process.send_signal(signal.SIGTERM)
    _, words = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "safety.grace_s" in words
    assert saved_step(tmp_path / "b/checkpoints/last.ckpt") == 8


def test_a_time_limit_saves_and_exits_like_a_signal(shards: Path, tmp_path: Path) -> None:
    keys = [*LONGER, f"data.path={shards}", "trainer.max_steps=100000", "hydra.run.dir=r"]
    done = run(*keys, "trainer.max_time=00:00:00:04", cwd=tmp_path)
    assert done.returncode == 143, done.stderr
    stated = result(tmp_path / "r")
    assert stated["status"] == "interrupted"
    assert "trainer.max_time is over" in stated["reason"]
    assert saved_step(tmp_path / "r/checkpoints/last.ckpt") == stated["steps"] > 0
    done = run(*keys[:-1], "trainer.max_time=4h", "hydra.run.dir=s", cwd=tmp_path)
    assert done.returncode == 2
    assert "days:hours:minutes:seconds" in done.stderr


@pytest.mark.parametrize(
    ("signum", "module"),
    [
        (signal.SIGINT, "hydra"),
        (signal.SIGTERM, "src.launch.job"),
        (signal.SIGUSR1, "lightning"),
        (signal.SIGTERM, "torch.nn.modules.rnn"),
    ],
)
def test_a_signal_while_modules_are_imported_exits_with_its_code(
    signum: signal.Signals, module: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("FAULT_SIGNAL", f"{signum.value}:{module}")
    done = run(*LONGER, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == (130 if signum == signal.SIGINT else 143), done.stderr
    assert "Traceback" not in done.stderr
    assert f"stopped by {signum.name}" in done.stderr
    assert not (tmp_path / "r/result.json").exists() or result(tmp_path / "r")["status"] == "interrupted"


def test_a_signal_before_the_first_step_leaves_a_record_to_resume_from(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [*LONGER, "trainer.max_steps=4", f"data.path={shards}", "hydra.run.dir=r"]
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("FAULT_SIGNAL", "15:src.callbacks.validation")
    done = run(*keys, cwd=tmp_path)
    assert done.returncode == 143, done.stderr
    stated = result(tmp_path / "r")
    assert (stated["status"], stated["reason"], stated["steps"]) == ("interrupted", "stopped by SIGTERM", 0)
    monkeypatch.delenv("FAULT_SIGNAL")
    monkeypatch.delenv("PYTHONPATH")
    done = run("resume=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "r")["status"] == "completed"


def test_a_process_whose_parent_has_ended_gets_one_sigterm(tmp_path: Path) -> None:
    child = (
        "import signal, time\n"
        "from src.launch.signals import stop_with_parent\n"
        "got = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: got.append(1))\n"
        "stop_with_parent(every_s=0.05)\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\n"
        "time.sleep(2)\n"
        f"open({str(tmp_path / 'got')!r}, 'w').write(str(len(got)))\n"
    )
    parent = (
        "import subprocess, sys, time, pathlib\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"while not pathlib.Path({str(tmp_path / 'ready')!r}).exists(): time.sleep(0.02)\n"
    )
    subprocess.run([sys.executable, "-c", parent], cwd=ROOT, check=True, timeout=60)
    deadline = time.monotonic() + 30
    while not (tmp_path / "got").exists() or not (tmp_path / "got").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (tmp_path / "got").read_text() == "1"
